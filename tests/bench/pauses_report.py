"""The report of the pauses."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests import measurement

ABOUT: Final = """\
Three assemblers and one broker on one machine, {partitions} partitions, {messages:,} messages in their memory,
{rate:,.0f} reports per second. The pause of a partition is the longest time from when a report was due to be sent until
its result could be read (`read_committed`), of all reports due during the event."""

TRUTH: Final = """\
{sent:,} reports were sent in all; {missing} have no result, {repeated} have more than one."""

STEPS: Final = """\
By the members' logs: until the first one gave its partitions up, from there until the last one had its new ones, and
from there until a partition was at work, for those that kept their owner and those that did not. Median - most, ms."""


STEP_NAMES: Final = ("noticed_s", "assigned_s", "stayed_ready_s", "came_ready_s")


def told(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    events = figures["events"]
    parts = [
        "# How long results pause while members come and go",
        f"{measurement.told(figures['circumstances'])} After: {figures['circumstances']['load_after'][0]}.",
        ABOUT.format(**figures["traffic"]),
        TRUTH.format(**figures["truth"]),
        measurement.table(
            [
                "a member",
                "partitions that change hands",
                "their pause, ms",
                "the others",
                "their pause, ms",
                "usual delay, ms",
            ],
            [
                [
                    each["event"],
                    len(each["affected_s"]),
                    _spread(each["affected_s"]),
                    len(each["unaffected_s"]),
                    _spread(each["unaffected_s"]),
                    f"{each['usual']['median_ms']:,.0f} - {each['usual']['p99_ms']:,.0f}",
                ]
                for each in events
            ],
        ),
        "Pauses: median - most. Usual delay, of all reports between two events: median - 99th percentile.",
        "## Where it goes",
        STEPS,
        measurement.table(
            ["a member", "noticed", "assigned", "at work, kept", "at work, new"],
            [
                [each["event"], *(_spread(each["steps"][name]) for name in STEP_NAMES)]
                for each in events
                if each["steps"]
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    middle, most = statistics.median(seconds) * 1000, max(seconds) * 1000
    return f"{most:,.0f}" if len(seconds) == 1 else f"{middle:,.0f} - {most:,.0f}"
