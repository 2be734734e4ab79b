"""What a set of reports of one message means, worked out from the contract alone (docs/contract.md section 7).

Written apart from the assembler's join on purpose: the two check each other.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

Fields = Mapping[str, Any]
_ORDER = ("status", "source", "orgCode", "to", "extend")


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    text = "" if value is None else str(value)
    return unquote(text) if name == "updateTime" else text


def _rank(fields: Fields) -> int:
    status = _text(fields, "status")
    if status in {"ACCEPTD", "UNKNOWN"}:
        return int(status == "UNKNOWN")
    return 3 if _text(fields, "updateTime") else 2


def _weight(fields: Fields) -> tuple[int, bytes, bool, tuple[bytes, ...]]:
    """What decides between two reports of one segment."""
    texts = tuple(_text(fields, name).encode() for name in _ORDER)
    return _rank(fields), _text(fields, "updateTime").encode(), _text(fields, "status") == "DELIVRD", texts


def _shown(sequence: int, fields: Fields) -> dict[str, Any]:
    texts = {name: _text(fields, name) for name in ("status", "source", "updateTime", "orgCode")}
    return {"sequence": sequence} | {name: text for name, text in texts.items() if text}


def truth_of(message_id: str, reports: Iterable[Fields]) -> dict[str, Any]:
    """The line of the truth file for one message.

    Args:
        message_id: its `smsMsgId`.
        reports: the members of its usable reports, at least one, in any order.

    Returns:
        `smsMsgId, outcome, final, total, received, missing, segments` as in a result.
    """
    counted: dict[int, Fields] = {}
    total = 1
    for fields in reports:
        sequence = int(fields.get("sequence") or 1)
        total = max(total, sequence, int(fields.get("total") or 1))
        if sequence not in counted or _weight(fields) > _weight(counted[sequence]):
            counted[sequence] = fields
    final = all(sequence in counted and _rank(counted[sequence]) > 0 for sequence in range(1, total + 1))
    return {
        "smsMsgId": message_id,
        "outcome": _outcome([_text(fields, "status") for fields in counted.values()]) if final else "incomplete",
        "final": final,
        "total": total,
        "received": len(counted),
        "missing": [sequence for sequence in range(1, total + 1) if sequence not in counted],
        "segments": [_shown(sequence, counted[sequence]) for sequence in sorted(counted)],
    }


def _outcome(statuses: list[str]) -> str:
    delivered = statuses.count("DELIVRD")
    if delivered == len(statuses):
        return "delivered"
    if delivered:
        return "partially_delivered"
    return "unknown" if statuses.count("UNKNOWN") == len(statuses) else "failed"
