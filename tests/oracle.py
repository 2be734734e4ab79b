"""What must come of a list of reports, worked out once more: slowly, plainly, and sharing no code with the product.

It reads contract.md sections 5 and 7 off the page: all reports of a message at once, sorted, the last one taken. Other
tests and the simulator's truth are checked against it.
"""

from collections import defaultdict
from collections.abc import Iterable
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
    if isinstance(value, str) and value in {form for n in range(1, 100) for form in (str(n), f"{n:02}")}:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value in range(1, 100):
        return value
    return -1


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
