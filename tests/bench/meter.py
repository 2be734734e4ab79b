"""CPU time and memory of processes with all their children, and what else the machine did meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

import psutil

SAMPLE_S: Final = 1.0


@dataclass(slots=True)
class Reading:
    """What a meter showed.

    Attributes:
        began: on the machine's monotonic clock; a stage moves it to its first request.
        ended: the same.
        cpu_s: CPU seconds by name of process, children included.
        rss_mib: greatest resident memory by name of process, children included (shared pages count in each).
        others_cpu_s: CPU seconds of everything else on the machine but this process.
    """

    began: float = 0.0
    ended: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    rss_mib: dict[str, float] = field(default_factory=dict)
    others_cpu_s: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.ended - self.began


class Meter:
    """Runs from entering to leaving the context; then `reading` is complete."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """Watch these processes, by name."""
        self._roots = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="meter")
        self._known: dict[str, dict[int, float]] = {name: {} for name in pids}
        self._before: dict[str, float] = {}
        self.reading = Reading()

    def __enter__(self) -> Self:
        self._look()
        self._before = {name: sum(known.values()) for name, known in self._known.items()}
        self._machine_before, self._own_before = _machine_cpu_s(), time.process_time()
        self.reading.began = time.perf_counter()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.reading.ended = time.perf_counter()
        self._done.set()
        self._sampler.join()
        self._look()
        reading = self.reading
        reading.cpu_s = {name: sum(known.values()) - self._before[name] for name, known in self._known.items()}
        machine = _machine_cpu_s() - self._machine_before
        reading.others_cpu_s = machine - sum(reading.cpu_s.values()) - (time.process_time() - self._own_before)

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        for name, root in self._roots.items():
            rss = 0.0
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        times = process.cpu_times()
                        # A process that has ended keeps the last time that was seen of it.
                        self._known[name][process.pid] = times.user + times.system
                        rss += process.memory_info().rss / 2**20
            self.reading.rss_mib[name] = max(rss, self.reading.rss_mib.get(name, 0.0))


def _machine_cpu_s() -> float:
    """CPU seconds that all cores have worked since the start of the machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)
