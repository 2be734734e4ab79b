"""Requests made before the clock starts, so that what is measured is not the making of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from ingest.contract.push import Route
from ingest.simulator.plan import Plan, PlannedPush, PlanOptions

LENGTH_BYTES: Final = 8
CONTENT_TYPES: Final = {
    Route.BATCH: "application/JSON;charset=UTF-8",
    Route.SINGLE: "application/x-www-form-urlencoded",
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests of one run, and what they mean.

    Attributes:
        requests: file with the requests, each after its length.
        truth: truth file (contract.md section 10).
        messages: how many different ones.
        reports: elements of all pushes, unusable ones and repeats included.
        unusable: of them.
        pushes: how many requests.
        body_bytes: of all pushes.
    """

    requests: Path
    truth: Path
    messages: int
    reports: int
    unusable: int
    pushes: int
    body_bytes: int

    def figures(self) -> dict[str, Any]:
        """Numbers without the paths."""
        return {name: value for name, value in dataclasses.asdict(self).items() if not isinstance(value, Path)}


def prepared(folder: Path, messages: int, seed: int) -> Traffic:
    """Write requests and truth of so many messages, disorder and repeats included; every message becomes complete."""
    options = PlanOptions(
        messages=messages,
        seed=seed,
        long_share=0.3,
        duplicate_share=0.02,
        invalid_share=0.0005,
        incomplete_share=0.0,
        shuffle=True,
    )
    requests, truth = folder / "requests.bin", folder / "truth.jsonl"
    pushes = body_bytes = 0
    with requests.open("wb") as requests_file, truth.open("wb") as truth_file:
        plan = Plan(options, lambda line: _write_line(truth_file.write, line))
        for push in plan.pushes():
            request = _request(push)
            requests_file.write(len(request).to_bytes(LENGTH_BYTES) + request)
            pushes += 1
            body_bytes += len(push.body)
        truth_file.write(orjson.dumps({"unusable": plan.unusable}))
    return Traffic(requests, truth, messages, plan.reports, plan.unusable, pushes, body_bytes)


def read_requests(path: Path) -> Iterator[bytes]:
    """The requests of a file that `prepared` wrote."""
    with path.open("rb") as file:
        while length := file.read(LENGTH_BYTES):
            yield file.read(int.from_bytes(length))


def _request(push: PlannedPush) -> bytes:
    head = (
        f"POST {push.route.value} HTTP/1.1\r\nHost: bench\r\nContent-Type: {CONTENT_TYPES[push.route]}\r\n"
        f"Content-Length: {len(push.body)}\r\n\r\n"
    )
    return head.encode() + push.body


def _write_line(write: Any, line: dict[str, Any]) -> None:
    write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
