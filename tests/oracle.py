"""What must come of a list of reports, worked out once more: slowly, plainly, and sharing no code with the product.

It reads contract.md sections 5 and 7 off the page: all reports of a message at once, sorted, the last one taken. Other
tests and the simulator's truth are checked against it.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

Raw = dict[str, Any]


def usable(raw: object) -> bool:
    """Whether a decoded JSON value is a usable report (contract.md section 5)."""
    if not isinstance(raw, dict):
        return False
    if not isinstance(raw.get("smsMsgId"), str):
        return False
    texts = {name: as_text(raw.get(name)) for name in ("status", "source", "updateTime", "orgCode", "to", "extend")}
    numbers = {name: as_number(raw.get(name)) for name in ("sequence", "total")}
    if None in texts.values() or -1 in numbers.values():
        return False
    sequence, total = numbers["sequence"] or 1, numbers["total"] or 99
    printed = (raw["smsMsgId"], texts["status"], texts["source"], unquote(texts["updateTime"] or ""), texts["orgCode"])
    return (
        1 <= len(raw["smsMsgId"]) <= 50
        and texts["status"] != ""
        and all(len(text or "") <= (1024 if name == "extend" else 64) for name, text in texts.items())
        and sequence <= total
        and not any(ord(character) < 32 or ord(character) == 127 for text in printed for character in text or "")
    )


def as_text(value: object) -> str | None:
    """A field's text, empty where absent; None where it is unusable."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return None
    return str(value)


def as_number(value: object) -> int:
    """A segment number, 0 where absent; -1 where it is unusable."""
    if value in (None, ""):
        return 0
    if isinstance(value, str) and value in _FORMS:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value in range(1, 100):
        return value
    return -1


_FORMS = {form for n in range(1, 100) for form in (str(n), f"{n:02}")}


def last_result(reports: Iterable[Raw]) -> Raw | None:
    """The last result of one message, after its timeout at the latest; None if no report is usable.

    Args:
        reports: decoded JSON values of one `smsMsgId`, in any order, with any repeats; unusable ones are passed over.

    Returns:
        The members of a result but for `schemaVersion`, `revision`, `reason` and the two times.
    """
    good = [raw for raw in reports if usable(raw)]
    if not good:
        return None
    by_sequence: dict[int, list[Raw]] = defaultdict(list)
    for raw in good:
        by_sequence[as_number(raw.get("sequence")) or 1].append(raw)
    winners = {sequence: max(those, key=_precedence) for sequence, those in sorted(by_sequence.items())}
    stated = {as_number(raw.get("total")) for raw in good} - {0}
    total = max(stated | set(winners))
    finals = [_rank(raw) > 0 for raw in winners.values()]
    delivered = [raw["status"] == "DELIVRD" for raw in winners.values()]
    if len(winners) < total or not all(finals):
        outcome = "incomplete"
    elif all(delivered):
        outcome = "delivered"
    elif any(delivered):
        outcome = "partially_delivered"
    elif all(raw["status"] == "UNKNOWN" for raw in winners.values()):
        outcome = "unknown"
    else:
        outcome = "failed"
    result: Raw = {
        "smsMsgId": good[0]["smsMsgId"],
        "outcome": outcome,
        "final": outcome != "incomplete",
        "total": total,
        "received": len(winners),
        "missing": [sequence for sequence in range(1, total + 1) if sequence not in winners],
        "totalConflict": len(stated) > 1 or None,
        "segments": [{"sequence": sequence, **_shown(raw)} for sequence, raw in winners.items()],
    }
    for name in ("to", "extend"):
        result[name] = next((as_text(raw.get(name)) for raw in winners.values() if as_text(raw.get(name))), None)
    return {name: value for name, value in result.items() if value is not None}


def last_results(reports: Iterable[Any]) -> dict[str, Raw]:
    """The last result of every message among reports of many, by `smsMsgId`."""
    by_message: dict[str, list[Raw]] = defaultdict(list)
    for raw in reports:
        if usable(raw):
            by_message[raw["smsMsgId"]].append(raw)
    return {message_id: result for message_id, those in by_message.items() if (result := last_result(those))}


TIMEOUT = None
"""Stands among the records of a message where its reassembly timeout passed."""


def all_results(records: Iterable[tuple[Any, int] | None]) -> list[Raw]:
    """Every result of one life of a message, whole and in order (contract.md section 7).

    Args:
        records: in the order of their partition: the decoded value and the timestamp, epoch ms, of each; or `TIMEOUT`.
    """
    heard: list[Raw] = []
    times: list[int] = []
    results: list[Raw] = []
    shown: Raw | None = None
    for record in records:
        if record is None:
            if heard and not results:
                shown = last_result(heard)
                results.append(_result(shown or {}, 1, "timeout", times))
            continue
        raw, timestamp_ms = record
        if not usable(raw):
            continue
        before, heard = _counted(heard), [*heard, raw]
        if _counted(heard) == before:
            continue
        times.append(timestamp_ms)
        now = last_result(heard) or {}
        if results and now != shown:
            results.append(_result(now, len(results) + 1, "revised", times))
        elif not results and now["final"]:
            results.append(_result(now, 1, "complete", times))
        shown = now
    return results


def _counted(reports: list[Raw]) -> list[Any]:
    """What a report changes if it changes the state: the counted reports, the greatest or the least stated total."""
    best: dict[int, list[Any]] = {}
    for raw in reports:
        sequence = as_number(raw.get("sequence")) or 1
        best[sequence] = max(best.get(sequence, []), _precedence(raw))
    stated = {as_number(raw.get("total")) for raw in reports} - {0}
    return [best, max(stated, default=0), min(stated, default=0)]


def _result(shown: Raw, revision: int, reason: str, times: list[int]) -> Raw:
    values = {
        **shown,
        "schemaVersion": 1,
        "revision": revision,
        "reason": reason,
        "firstReceivedAt": _rfc3339(min(times)),
        "lastReceivedAt": _rfc3339(max(times)),
    }
    return {name: values[name] for name in _MEMBERS if name in values}


_MEMBERS = (
    *("schemaVersion", "smsMsgId", "revision", "outcome", "final", "total", "received", "missing", "totalConflict"),
    *("segments", "to", "extend", "reason", "firstReceivedAt", "lastReceivedAt"),
)


def _rfc3339(epoch_ms: int) -> str:
    at = datetime.fromtimestamp(epoch_ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{epoch_ms % 1000:03}Z"


def _rank(raw: Raw) -> int:
    if raw["status"] in ("ACCEPTD", "UNKNOWN"):
        return ["ACCEPTD", "UNKNOWN"].index(raw["status"])
    return 3 if _field(raw, "updateTime") else 2


def _precedence(raw: Raw) -> list[Any]:
    texts = [_field(raw, name).encode() for name in ("status", "source", "orgCode", "to", "extend")]
    return [_rank(raw), _field(raw, "updateTime").encode(), raw["status"] == "DELIVRD", *texts]


def _shown(raw: Raw) -> Raw:
    names = ("status", "source", "updateTime", "orgCode")
    return {name: _field(raw, name) for name in names if _field(raw, name)}


def _field(raw: Raw, name: str) -> str:
    text = as_text(raw.get(name)) or ""
    return unquote(text) if name == "updateTime" else text
