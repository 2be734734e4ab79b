"""What bodies say, read once more by hand: RFC 8259 and forms, letter by letter, sharing no code with the product.

It is slow and plain on purpose. Beside each element it gives the place where it stands, so that the bytes which the
product cuts out can be compared, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tests.oracle import usable

DEPTH_MAX: Final = 64
REMEMBERED: Final = 8192
"""Readings: each body is read as it is sent and again as the disk gives it back."""

_BLANK: Final = " \t\n\r"
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_ESCAPES: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX: Final = re.compile(r"[0-9a-fA-F]{4}")
_DIGITS_MAX: Final = 25
_HIGH: Final = range(0xD800, 0xDC00)
_LOW: Final = range(0xDC00, 0xE000)


class NotReadableError(Exception):
    """It is not what it should be."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a body is worth.

    Attributes:
        taken: answered 200; otherwise 400, and the body is one dead letter.
        pieces: the bytes of its elements, or of the report of a form.
        values: what they say.
    """

    taken: bool
    pieces: tuple[bytes, ...] = ()
    values: tuple[Any, ...] = ()

    @property
    def usable(self) -> tuple[bool, ...]:
        """Which of them are reports (contract.md section 5)."""
        return tuple(usable(value) for value in self.values)

    @property
    def reports(self) -> int:
        """How many reports it counts as."""
        return len(self.pieces) if self.taken else 1


REFUSED: Final = Reading(taken=False)


@lru_cache(maxsize=REMEMBERED)
def read_batch(body: bytes, reports_max: int) -> Reading:
    """Read the body of a batch (contract.md section 3)."""
    try:
        text = body.decode()
        reader = _Reader(text)
        value = reader.document()
    except (UnicodeDecodeError, NotReadableError):
        return REFUSED
    if not isinstance(value, dict) or not isinstance(value.get("statusReportList"), list):
        return REFUSED
    # Of repeated members the last counts, and so does its place.
    spans = reader.spans
    if len(spans) > reports_max:
        return REFUSED
    pieces = tuple(text[start:end].encode() for start, end in spans)
    return Reading(taken=True, pieces=pieces, values=tuple(value["statusReportList"]))


@lru_cache(maxsize=REMEMBERED)
def read_form(body: bytes) -> Reading:
    """Read the body of a single callback (contract.md sections 3 and 6)."""
    fields: dict[str, str] = {}
    try:
        for pair in body.split(b"&"):
            name, _, value = pair.partition(b"=")
            fields[_decoded(name)] = _decoded(value)
    except UnicodeDecodeError:
        return REFUSED
    if not usable(fields):
        return REFUSED
    return Reading(taken=True, pieces=(_written(fields).encode(),), values=(fields,))


def _decoded(text: bytes) -> str:
    out = bytearray()
    at = 0
    while at < len(text):
        digits = text[at + 1 : at + 3]
        if text[at : at + 1] == b"%" and re.fullmatch(rb"[0-9a-fA-F]{2}", digits):
            out.append(int(digits, 16))
            at += 3
        else:
            out += b" " if text[at : at + 1] == b"+" else text[at : at + 1]
            at += 1
    return out.decode()


def _written(fields: dict[str, str]) -> str:
    """Compact JSON of strings; what JSON must escape is written in its shortest form."""
    short = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

    def quoted(text: str) -> str:
        letters = (short.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in text)
        return f'"{"".join(letters)}"'

    return "{" + ",".join(f"{quoted(name)}:{quoted(value)}" for name, value in fields.items()) + "}"


class _Reader:
    """One document; `spans` are the places of the elements of its last `statusReportList`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.spans: list[tuple[int, int]] = []

    def document(self) -> Any:
        value = self._value(0)
        self._skip()
        if self._at != len(self._text):
            raise NotReadableError
        return value

    def _value(self, depth: int) -> Any:
        if depth > DEPTH_MAX:
            raise NotReadableError
        self._skip()
        match self._look():
            case "{":
                return self._object(depth + 1)
            case "[":
                return self._array(depth + 1)
            case '"':
                return self._string()
        for word, value in (("true", True), ("false", False), ("null", None)):
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return value
        return self._number()

    def _object(self, depth: int) -> dict[str, Any]:
        self._open(depth)
        members: dict[str, Any] = {}
        while not self._closes("}", first=not members):
            self._skip()
            if self._look() != '"':
                raise NotReadableError
            name = self._string()
            self._skip()
            self._expect(":")
            spans, self.spans = self.spans, []
            members[name] = self._value(depth)
            if depth != 1 or name != "statusReportList":
                self.spans = spans
        return members

    def _array(self, depth: int) -> list[Any]:
        self._open(depth)
        items: list[Any] = []
        spans: list[tuple[int, int]] = []
        while not self._closes("]", first=not items):
            self._skip()
            start = self._at
            items.append(self._value(depth))
            spans.append((start, self._at))
        self.spans = spans
        return items

    def _open(self, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise NotReadableError
        self._at += 1

    def _closes(self, bracket: str, *, first: bool) -> bool:
        """Whether the container ends here; otherwise what separates its items is taken."""
        self._skip()
        if self._look() == bracket:
            self._at += 1
            return True
        if not first:
            self._expect(",")
            self._skip()
            if self._look() == bracket:
                raise NotReadableError
        return False

    def _string(self) -> str:
        self._at += 1
        out: list[str] = []
        while (letter := self._look()) != '"':
            if letter == "" or letter < " ":
                raise NotReadableError
            self._at += 1
            out.append(self._escaped() if letter == "\\" else letter)
        self._at += 1
        return "".join(out)

    def _escaped(self) -> str:
        letter = self._look()
        self._at += 1
        if letter in _ESCAPES:
            return _ESCAPES[letter]
        if letter != "u":
            raise NotReadableError
        code = self._code()
        if code in _HIGH:
            self._expect("\\")
            self._expect("u")
            low = self._code()
            if low not in _LOW:
                raise NotReadableError
            return chr(0x10000 + ((code - _HIGH.start) << 10) + (low - _LOW.start))
        if code in _LOW:
            raise NotReadableError
        return chr(code)

    def _code(self) -> int:
        digits = _HEX.match(self._text, self._at)
        if digits is None:
            raise NotReadableError
        self._at += 4
        return int(digits[0], 16)

    def _number(self) -> int | float:
        found = _NUMBER.match(self._text, self._at)
        if found is None:
            raise NotReadableError
        self._at = found.end()
        whole = found[1] is None and found[2] is None
        return int(found[0]) if whole and len(found[0]) <= _DIGITS_MAX else 0.5

    def _skip(self) -> None:
        while self._look() in tuple(_BLANK):
            self._at += 1

    def _look(self) -> str:
        return self._text[self._at : self._at + 1]

    def _expect(self, letter: str) -> None:
        if self._look() != letter:
            raise NotReadableError
        self._at += 1
