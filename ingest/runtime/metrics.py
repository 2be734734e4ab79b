"""Prometheus metrics in the default registry, of one process or summed over the workers of one command.

With several worker processes each writes its values to files in a folder that all of them know
(`worker_environment`, set before the worker imports anything), and the parent sums them (`exposition(folder)`).
Gauges are summed over the processes that live.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Content type of `exposition`."""

disable_created_metrics()  # type: ignore[no-untyped-call]


_made: dict[str, Counter | Gauge | Histogram] = {}
_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


def _once(kind: type[_Metric], name: str, make: Callable[[], _Metric]) -> _Metric:
    """One metric per name in a process, whichever module asks first: several write the same one."""
    made = _made.get(name)
    if made is None:
        made = _made[name] = make()
    if not isinstance(made, kind):
        raise TypeError(f"{name} is a {type(made).__name__}")
    return made


def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
    """The counter of this name (without `_total`); the same one every time."""
    return _once(Counter, name, lambda: Counter(name, text, labels))


def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
    """The gauge of this name; the same one every time."""
    return _once(Gauge, name, lambda: Gauge(name, text, labels, multiprocess_mode="livesum"))


def histogram(name: str, text: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...]) -> Histogram:
    """The histogram of this name, buckets in seconds; the same one every time."""
    return _once(Histogram, name, lambda: Histogram(name, text, labels, buckets=buckets))


def worker_environment(folder: Path) -> Mapping[str, str]:
    """What a worker's environment needs, before it imports this module, so that it writes its values to the folder."""
    return {"PROMETHEUS_MULTIPROC_DIR": str(folder)}


def forget_worker(folder: Path, pid: int) -> None:
    """Drop the gauges of a worker that ended; its counters stay in the sums."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 it imports its value class at once

    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def exposition(folder: Path | None = None) -> bytes:
    """All metrics as text: this process's, or the sums over the workers that write to the folder."""
    if folder is None:
        return generate_latest(REGISTRY)
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 as above

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
