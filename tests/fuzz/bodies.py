"""Bodies that a hostile or broken sender may send: reports and forms, bent in their structure and in their bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any, Final
from urllib.parse import quote, quote_plus

NAMES: Final = (
    "smsMsgId",
    "status",
    "total",
    "sequence",
    "source",
    "updateTime",
    "orgCode",
    "to",
    "extend",
    "statusDesc",
)
TOKENS: Final = (
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b'"',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\\udc00\\ud800",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"null",
        b"true",
        b"NaN",
        b"Infinity",
        b"-",
        b"-0",
        b"1e999",
        b"1E-9",
        b"0x1",
    ),
    *(b"9" * 20, b"9" * 400, b"18446744073709551616", b'"statusReportList":', b'"statusReportList":[]', b'"smsMsgId":'),
    *(
        b"%",
        b"%2",
        b"%zz",
        b"%00",
        b"%ff",
        b"%26",
        b"&",
        b"=",
        b"+",
        b"&&",
        b"\x7f",
        b"\x1f",
        b"\n",
        b"\r\n",
        b"\t",
        b" ",
    ),
    *(b"\xf0\x9f\x98\x80", b"\xe2\x80\xa8", b"//", b"/*", b"'", b"[" * 70, b'{"a":' * 70),
)
_ODD_TEXTS: Final = (
    *(
        "",
        " ",
        "0",
        "00",
        "1",
        "01",
        "99",
        "100",
        "1 ",
        "\u0661",
        "\uff11",
        "x" * 50,
        "x" * 51,
        "x" * 64,
        "x" * 65,
        "e" * 1024,
    ),
    *(
        "e" * 1025,
        "\0",
        "\x1f",
        "\x7f",
        "\x80",
        "\u2028",
        "\U0001f600" * 50,
        "%00",
        "%41",
        "%ff",
        "%",
        "%u0041",
        "\ufeff",
    ),
    *("DELIVRD", "ACCEPTD", "UNKNOWN", "MK:0012", "2023-04-18T07%3A26%3a00Z", "2023-04-18T07:26:00Z", "+8613500000001"),
)
_ODD_VALUES: Final[tuple[Any, ...]] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        99,
        100,
        1.0,
        1e300,
        0.1,
        2**63,
        2**64 - 1,
        2**64,
        -(2**63),
        -(2**63) - 1,
        10**30,
    ),
    *([], {}, [[]], {"a": 1}, ["DELIVRD"], [None]),
)


def a_report(rng: Random, name: str) -> dict[str, Any]:
    """A usable report, of a message with this name."""
    total = rng.choice((1, 1, 1, 2, 3, 8))
    report: dict[str, Any] = {"smsMsgId": name, "status": rng.choice(("DELIVRD", "EXPIRED", "E200018", "CL26:-36", 7))}
    if rng.random() < 0.7:
        sequence = rng.randint(1, total)
        report |= {
            "total": rng.choice((total, str(total), f"{total:02}")),
            "sequence": rng.choice((sequence, str(sequence))),
        }
    if rng.random() < 0.7:
        report["updateTime"] = rng.choice(("2023-04-18T07:26:00Z", "2023-04-18T07%3A26%3A00Z"))
    for field in ("source", "orgCode", "to", "extend", "statusDesc"):
        if rng.random() < 0.2:
            report[field] = rng.choice(("2", "000", "+8613500000001", "\u4f60\u597d", 'a\\"b', 3))
    return report


def a_batch(rng: Random, name: str) -> bytes:
    """The body of a batch, usable or bent."""
    elements: list[Any] = [a_report(rng, f"{name}-{n}") for n in range(_how_many(rng))]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        if elements:
            _bend(rng, elements)
    body: Any = {"statusReportList": elements}
    if rng.random() < 0.1:
        body = {
            rng.choice(_ODD_TEXTS): copy.deepcopy(rng.choice(_ODD_VALUES)),
            **body,
            rng.choice(NAMES): copy.deepcopy(rng.choice(_ODD_VALUES)),
        }
    if rng.random() < 0.02:
        body = rng.choice((elements, {"StatusReportList": elements}, {"statusReportList": body}, None, 7, name))
    return _altered(rng, _written(rng, body))


def a_form(rng: Random, name: str) -> bytes:
    """The body of a single callback, usable or bent."""
    report = a_report(rng, name)
    if rng.random() < 0.4:
        report[rng.choice(NAMES)] = rng.choice(_ODD_TEXTS)
    pairs = [(field, str(value)) for field, value in report.items()]
    if rng.random() < 0.1:
        pairs += [rng.choice(pairs), (rng.choice(NAMES), rng.choice(_ODD_TEXTS))]
    if rng.random() < 0.2:
        rng.shuffle(pairs)
    coded: Callable[[str], str] = rng.choice(
        (quote, quote_plus, str, lambda text: "".join(f"%{b:02X}" for b in text.encode()))
    )
    return _altered(rng, "&".join(f"{coded(field)}={coded(value)}" for field, value in pairs).encode())


def altered(rng: Random, data: bytes, tokens: tuple[bytes, ...] = TOKENS) -> bytes:  # noqa: PLR0911 - one a kind
    """Bytes with one place of them changed."""
    at = rng.randint(0, len(data))
    to = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 64)))
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[to:]
        case 2:
            return data[:at] + data[at:to] * rng.choice((2, 3, 20)) + data[to:]
        case 3:
            return data[:at] + rng.randbytes(rng.choice((1, 2, 8))) + data[to:]
        case 4:
            other = rng.randint(0, len(data))
            return data[:at] + data[other : other + to - at] + data[to:]
        case 5 if at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        case 6:
            return data[:at] + rng.choice(tokens) + data[to:]
        case _:
            return data[:at] + rng.choice(tokens) + data[at:]


def _altered(rng: Random, body: bytes) -> bytes:
    for _ in range(rng.choice((0, 0, 0, 0, 1, 1, 2, 4))):
        body = altered(rng, body)
    return body


def _how_many(rng: Random) -> int:
    return rng.choice((0, 1, 1, 1, 2, 2, 3, 5, 20, 21))


def _bend(rng: Random, elements: list[Any]) -> None:
    """Change one element in its structure."""
    at = rng.randrange(len(elements))
    odd: Any = rng.choice(_ODD_TEXTS) if rng.random() < 0.5 else copy.deepcopy(rng.choice(_ODD_VALUES))
    if not isinstance(elements[at], dict) or rng.random() < 0.1:
        elements[at] = odd
    elif rng.random() < 0.2:
        elements[at].pop(rng.choice(list(elements[at]) or [""]), None)
    else:
        elements[at][rng.choice(NAMES)] = odd


def _written(rng: Random, body: Any) -> bytes:
    """JSON in one of the ways in which it may be written; now and then with a member that is repeated."""
    separators = rng.choice(((",", ":"), (",", ":"), (", ", ": "), (" ,\n", "\t:\r")))
    text = json.dumps(body, ensure_ascii=rng.random() < 0.5, separators=separators)
    chance = rng.random()
    if chance < 0.03:
        text = text.replace('"statusReportList"', '"statusReportList":[{}],"statusReportList"', 1)
    elif chance < 0.05:
        text = text.replace('"statusReportList"', '"status\\u0052eportList"', 1)
    elif chance < 0.07:
        text = text.replace('"smsMsgId"', '"smsMsgId":1,"smsMsgId"', 1)
    elif chance < 0.09:
        depth = rng.choice((10, 61, 62, 63, 64, 65, 500, 5000))
        text = text[:-1] + (',"deep":' if text[-1:] == "}" else "") + "[" * depth + "]" * depth + text[-1:]
    elif chance < 0.1:
        text = rng.choice(("\ufeff", " ", "\n")) + text + rng.choice(("", " ", "\0", "{}", ","))
    return text.encode(errors="surrogatepass")
