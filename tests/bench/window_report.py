"""The report of the measurement of a large window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests import measurement

ABOUT: Final = """\
{reports:,} reports of {messages:,} messages in {partitions} partitions, {repeats:,} of them repeats, all in their topic
before the assembler starts; one assembler process, one broker on the same machine. Late window and timeout
{window_s:,} s. Loading took {loading_s:,.0f} s."""

TRUTH: Final = """\
{results:,} results were read off the broker's disk, for {messages:,} messages: {said}. The assembler's own counts of
applied and repeated reports are those that were sent, also after each restart."""

GROWTH: Final = """\
CPU s per million: {first:.1f} in the first quarter, {last:.1f} in the last. Most anonymous memory: {most:,} MiB."""

RESTARTS: Final = {
    "stopping_s": "clean stop, s",
    "assigned_after_s": "assigned after, s from launch",
    "first_results_after_s": "first result of each partition, s from launch",
    "restored_entries": "entries read from the changelog",
    "restoring_s": "assigned until all run, s",
    "restoring_cpu_s": "CPU s meanwhile",
    "entries_per_s": "entries per second",
    "entries_per_cpu_s": "entries per CPU second",
    "anonymous_mib_most": "anonymous MiB at the most",
    "anonymous_mib_after": "anonymous MiB after",
    "repeats_known": "repeats of old messages, all known",
}


def told(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    points = figures["points"]
    head = ["reports", "per second", "CPU s per million", "anonymous MiB", "mapped MiB"]
    head += ["journal MiB", "files", "runs MiB", "files"]
    names = ["reports", "reports_per_s", "cpu_s_per_million", "anonymous_mib", "file_mib"]
    names += ["journal_mib", "journals", "runs_mib", "runs"]
    restarts = [name for name in figures if name.startswith("restarted")]
    findings = figures["truth"]["findings"]
    quarter = max(1, len(points) // 4)
    first, last = (
        sum(p["cpu_s_per_million"] for p in some) / quarter for some in (points[:quarter], points[-quarter:])
    )
    parts = [
        "# Millions of messages in the window",
        f"{measurement.told(figures['circumstances'])} After: {figures['circumstances']['load_after'][0]}.",
        ABOUT.format(**figures["traffic"]),
        TRUTH.format(**figures["truth"], said=f"wrong are {findings}" if findings else "each exactly one, and right"),
        "## As it grows",
        measurement.table(head, [[_short(point[name]) for name in names] for point in points]),
        GROWTH.format(first=first, last=last, most=max(p["anonymous_mib"] for p in points)),
        "## Started again",
        measurement.table(
            ["", *restarts],
            [[text, *(_short(figures[each][name]) for each in restarts)] for name, text in RESTARTS.items()],
        ),
        "## On the broker's disk",
        measurement.table(["topic", "MiB"], [[name, f"{size:,}"] for name, size in figures["topic_mib"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}"
