"""Where the time of a rebalance goes, from the logs of the members: revoked, assigned, at work again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.bench.group import Group

REVOKED: Final = "partitions revoked"
ASSIGNED: Final = "partitions assigned"
RUNS: Final = "partition runs"


def steps_of(group: Group, before: Mapping[int, str], after: Mapping[int, str], began_at_s: float) -> dict[str, Any]:
    """Seconds of the last rebalance of an event, as the members that are left have logged it.

    Args:
        group: whose logs.
        before: owners by partition before the event.
        after: owners after it.
        began_at_s: of the event, epoch seconds.

    Returns:
        Lists, empty where the logs say nothing: `noticed_s` until the first of them gave its partitions up,
        `assigned_s` from there until the last had its new ones, and from there until each partition was at work
        `stayed_ready_s` of those that kept their owner and `came_ready_s` of the others.
    """
    revoked: list[float] = []
    assigned: dict[str, float] = {}
    runs: dict[int, float] = {}
    for name in sorted(set(after.values())):
        for line in group.lines(name, began_at_s):
            if line.event == REVOKED:
                revoked.append(line.at_s)
            elif line.event == ASSIGNED:
                assigned[name] = line.at_s
            elif line.event == RUNS and after[line.fields["partition"]] == name:
                runs[line.fields["partition"]] = line.at_s
    ready = {
        partition: at_s - assigned[after[partition]] for partition, at_s in runs.items() if after[partition] in assigned
    }
    stayed = {partition for partition in ready if before.get(partition) == after[partition]}
    return {
        "noticed_s": [round(min(revoked) - began_at_s, 3)] if revoked else [],
        "assigned_s": [round(max(assigned.values()) - min(revoked), 3)] if revoked and assigned else [],
        "stayed_ready_s": sorted(round(ready[partition], 3) for partition in stayed),
        "came_ready_s": sorted(round(ready[partition], 3) for partition in ready.keys() - stayed),
    }
