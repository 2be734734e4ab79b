"""Reports of one message without end, and what must come of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson

from tests.bench.broker_log import batches
from tests.oracle import last_result

SEGMENTS: Final = 99
_BEGAN: Final = datetime(2026, 1, 1, tzinfo=UTC)
_FREE: Final = {"schemaVersion", "revision", "reason", "firstReceivedAt", "lastReceivedAt"}
"""Members of a result that the oracle does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How the reports of the message differ.

    Attributes:
        name: of the kind.
        segments: how many the message has; each report is of the next one.
        changes: whether each report is later than all before it, with another status; otherwise all are the same.
        share: of the reports asked for: what is sent of a kind whose results are large.
    """

    name: str
    segments: int
    changes: bool
    share: float = 1.0

    @property
    def message_id(self) -> str:
        """The `smsMsgId`."""
        return f"hot-{self.name.replace(' ', '-')}"

    def report(self, number: int) -> dict[str, Any]:
        """One report by its number."""
        at = _BEGAN + timedelta(seconds=number) if self.changes else _BEGAN
        return {
            "smsMsgId": self.message_id,
            "total": self.segments,
            "sequence": number % self.segments + 1,
            "status": "UNDELIV" if self.changes and number // self.segments % 2 else "DELIVRD",
            "source": "2",
            "updateTime": f"{at:%Y-%m-%dT%H:%M:%SZ}",
            "orgCode": "000500",
        }

    def records(self, count: int) -> Iterator[tuple[bytes, bytes]]:
        """So many records: key and value."""
        key = self.message_id.encode()
        if not self.changes:
            value = orjson.dumps(self.report(0))
            yield from ((key, value) for _ in range(count))
            return
        for number in range(count):
            yield key, orjson.dumps(self.report(number))

    def revisions(self, count: int) -> int:
        """How many results so many reports bring: the first when all segments were heard of, then one for each."""
        return max(0, count - self.segments + 1) if self.changes else 1

    def findings(self, data_folder: Path, topic: str, partition: int, count: int) -> list[str]:
        """What is wrong with the results of so many reports; empty if nothing is."""
        pattern = re.compile(rb'"smsMsgId":"%b","revision":(\d+),' % self.message_id.encode())
        revisions: list[int] = []
        last = b""
        for batch in batches(data_folder, topic, partition):
            found = list(pattern.finditer(batch.data))
            revisions += [int(each[1]) for each in found]
            if found:
                last = batch.data[batch.data.rindex(b"{", 0, found[-1].start()) :]
        wrong = []
        if revisions != list(range(1, self.revisions(count) + 1)):
            wrong.append(f"{len(revisions)} revisions, the last {revisions[-1:]}, in place of {self.revisions(count)}")
        # Of each segment the latest report counts: what came before the last round cannot.
        wanted = last_result(self.report(number) for number in range(max(0, count - self.segments), count))
        result, _ = json.JSONDecoder().raw_decode(last.decode(errors="replace")) if last else ({}, 0)
        if {name: value for name, value in result.items() if name not in _FREE} != wanted:
            wrong.append(f"the last result is {result}")
        return wrong


KINDS: Final = (
    Kind(name="exact repeats", segments=1, changes=False),
    Kind(name="changing status", segments=1, changes=True),
    Kind(name="99 changing segments", segments=SEGMENTS, changes=True, share=0.1),
)
