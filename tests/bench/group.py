"""Assemblers as processes of one group, and what they say of themselves."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from deploy.local.kafka import LocalKafka
from deploy.local.product import Product
from ingest.contract.topics import changelog_topic

POLL_S: Final = 0.1
RUNNING: Final = "running"
_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


class GroupError(Exception):
    """The group did not come to where it must, or its books do not balance; the message says which."""


class Line(NamedTuple):
    """One line of a log: epoch seconds, the event, and its fields."""

    at_s: float
    event: str
    fields: Mapping[str, Any]


class Group:
    """Assemblers by name on topics of their own. Each has its own state folder, as on a machine of its own."""

    def __init__(
        self,
        kafka: LocalKafka,
        folder: Path,
        names: Sequence[str],
        *,
        partitions: int,
        settings: Mapping[str, str] | None = None,
        prefix: str = "bench.",
    ) -> None:
        """Make the topics; nothing is started.

        Args:
            kafka: a running one, whose disk is at hand.
            folder: of state and logs.
            names: of the assemblers.
            partitions: of all topics.
            settings: `DLR_*` settings beside those that name topics and places.
            prefix: of topics and group.
        """
        self.partitions = partitions
        self.reports, self.results, self.dead_letters = f"{prefix}reports", f"{prefix}results", f"{prefix}dead"
        self.changelog = changelog_topic(f"{prefix}group", self.reports)
        self.options = {"bootstrap_servers": kafka.bootstrap}
        self.data_folder = kafka.folder / "node-1" / "data"
        named = {
            "DLR_REPORTS_TOPIC": self.reports,
            "DLR_RESULTS_TOPIC": self.results,
            "DLR_DEAD_LETTERS_TOPIC": self.dead_letters,
            "DLR_GROUP_ID": f"{prefix}group",
            "DLR_TOPIC_PARTITIONS": str(partitions),
        }
        commands = dict.fromkeys(names, ("consumers", "assemble"))
        self.product = Product(folder, kafka.bootstrap, commands=commands, settings={**(settings or {}), **named})
        self.product.run("ingest", "topics")

    def counts(self, name: str, metric: str, label: str) -> dict[str, float]:
        """A metric of an assembler by the values of one label; empty while it does not answer."""
        found: dict[str, float] = {}
        for what, labels, value in _SAMPLE.findall(self.product.asked(name, "/metrics") or ""):
            if what == metric:
                key = dict(_LABEL.findall(labels))[label]
                found[key] = found.get(key, 0.0) + float(value)
        return found

    def owners(self, names: Collection[str]) -> dict[int, str] | None:
        """Who works on which partition; None unless each is worked on by one of these, and each of these on some."""
        found: dict[int, str] = {}
        count = 0
        for name in names:
            said = json.loads(self.product.asked(name, "/healthz") or "{}")
            phases = said.get("partitions", {})
            if not phases or not said.get("joined") or set(phases.values()) != {RUNNING}:
                return None
            count += len(phases)
            found |= {int(partition): name for partition in phases}
        return found if count == len(found) == self.partitions else None

    def lines(self, name: str, since_s: float = 0.0) -> list[Line]:
        """What an assembler has logged since a time, epoch seconds; lines of libraries included."""
        found = []
        for text in self.product.log(name).read_text(errors="replace").splitlines():
            if text.startswith("{") and text.endswith("}"):
                fields = json.loads(text)
                at_s = datetime.fromisoformat(fields["timestamp"]).timestamp()
                if at_s >= since_s:
                    found.append(Line(at_s, fields["event"], fields))
        return found


def until(condition: Callable[[], bool], failure: str, *, timeout_s: float, poll_s: float = POLL_S) -> None:
    """Wait for a condition of other processes.

    Raises:
        GroupError: it did not come in time; with `failure` as the message.
    """
    over = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > over:
            raise GroupError(f"{failure} within {timeout_s:.0f} s")
        time.sleep(poll_s)
