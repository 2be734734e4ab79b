"""Medians over rounds, and the report for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests import measurement
from tests.bench.bodies import Traffic

Round = dict[str, dict[str, Any]]
"""Figures by stage."""

ABOUT: Final = """\
{reports:,} reports of {messages:,} messages in {pushes:,} pushes, disorder and repeats included; {rounds} rounds,
medians (least - greatest). fsync before the answer, acks=all, transactions on; broker, loader and product share the
machine. After every round the audit found nothing lost, wrong or repeated."""

UNITS: Final = """\
The receiver and the whole path count reports, the assembler records, sinks results. CPU is that of the stage's
processes with their children; the broker's is in the JSON."""


def medians(rounds: Sequence[Round]) -> Round:
    """The median of every plain number over the rounds."""
    return {
        stage: {
            name: statistics.median(each[stage][name] for each in rounds)
            for name, value in figures.items()
            if isinstance(value, int | float)
        }
        for stage, figures in rounds[0].items()
    }


def told(where: Mapping[str, Any], traffic: Traffic, rounds: Sequence[Round]) -> str:
    """The figures as Markdown."""
    middle = medians(rounds)

    def spread(stage: str, name: str) -> str:
        values = [each[stage][name] for each in rounds]
        around = f" ({_short(min(values))} - {_short(max(values))})" if len(values) > 1 else ""
        return _short(middle[stage][name]) + around

    def row(stage: str, *names: str) -> list[str]:
        return [stage, *(spread(stage, name) for name in names)]

    sizes = [
        ("bodies", traffic.body_bytes),
        ("reports topic", middle["receiver"]["reports_topic_bytes"]),
        ("results topic", middle["assembler"]["results_topic_bytes"]),
    ]
    parts = [
        "# What the stages carry",
        f"{measurement.told(where)} After: {where['load_after'][0]}.",
        ABOUT.format(reports=traffic.reports, messages=traffic.messages, pushes=traffic.pushes, rounds=len(rounds)),
        measurement.table(
            ["stage", "per second", "CPU s per million", "CPU s of others meanwhile"],
            [row(stage, "per_s", "cpu_s_per_million", "others_cpu_s") for stage in middle],
        ),
        UNITS,
        "## Answers at saturation",
        measurement.table(
            ["stage", "reports answered per second", "p50 ms", "p99 ms", "p99.9 ms"],
            [
                row(stage, "answered_reports_per_s", "p50_ms", "p99_ms", "p999_ms")
                for stage in ("receiver", "whole path")
            ],
        ),
        "## Greatest resident memory",
        measurement.table(["stage", "MiB"], [row(stage, "rss_mib") for stage in middle]),
        "## Bytes per report",
        measurement.table(["where", "bytes"], [[name, f"{size / traffic.reports:,.1f}"] for name, size in sizes]),
    ]
    return "\n\n".join(parts) + "\n"


def _short(value: float) -> str:
    """A figure without digits that mean nothing."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
