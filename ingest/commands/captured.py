"""A request as somebody wrote it to files: what `python -m ingest verify` looks at."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ingest.receiver.signature import Received, seconds_of
from ingest.runtime.errors import UsageError

FILE_BYTES_MAX: Final = 64 << 20
"""What a body may have at most, whatever is configured."""

_REQUEST_LINE: Final = re.compile(rb"([A-Za-z]+) (\S+) HTTP/[0-9.]+")
_HEADER: Final = re.compile(rb"([^\s:]+):[ \t]*(.*?)[ \t]*")
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class Capture:
    """A captured request, and what was assumed where the files do not say it."""

    received: Received
    notes: tuple[str, ...] = ()


def read_capture(
    head: Path, body: Path | None, *, method: str | None, target: str | None, default_target: str
) -> Capture:
    """Read a request from files.

    Args:
        head: a request line and headers as on the wire, or lines `name: value` alone; LF or CRLF.
        body: the bytes of the body; None: what follows the first empty line of `head`.
        method: instead of the one of the request line.
        target: path and query, instead of those of the request line.
        default_target: where neither names one.

    Raises:
        UsageError: a file cannot be read, or `head` is no head.
    """
    notes = []
    data = _read(head, "--head")
    if not data.strip():
        raise UsageError(f"--head {head} is empty")
    lines, rest = _partition(data)
    if (line := _REQUEST_LINE.fullmatch(lines[0])) is not None:
        stated_method, stated_target = line[1].decode(), line[2].decode(errors="surrogateescape")
        lines = lines[1:]
    else:
        stated_method, stated_target = "POST", default_target
        if method is None or target is None:
            notes.append(f"the file has no request line: taken for {method or stated_method} {target or stated_target}")
    headers = [_header(text, head) for text in lines if text]
    if body is None and any(name.lower() == b"transfer-encoding" for name, _ in headers):
        notes.append("a chunked body has to be given as it is without its chunks, with --body")
    return Capture(
        Received(
            method=method or stated_method,
            target=target or stated_target,
            headers=headers,
            body=rest if body is None else _read(body, "--body"),
        ),
        tuple(notes),
    )


def moment_of(text: str | None) -> datetime:
    """The time that an option names, now if it names none.

    Raises:
        UsageError: it is neither as in `X-Sdk-Date` nor RFC 3339.
    """
    if text is None:
        return datetime.now(UTC)
    compact = seconds_of(text.encode(errors="replace"))
    if compact is not None:
        return datetime.fromtimestamp(compact, UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("--at needs a time such as 20241212T070653Z or 2024-12-12T07:06:53Z") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _partition(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines of the head, and what follows the empty line that ends it."""
    end = _END_OF_HEAD.search(data)
    head, rest = (data, b"") if end is None else (data[: end.start()], data[end.end() :])
    return [line.removesuffix(b"\r") for line in head.split(b"\n")], rest


def _header(line: bytes, head: Path) -> tuple[bytes, bytes]:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise UsageError(f"--head {head} has a line that is neither a request line at the beginning nor 'name: value'")
    return match[1], match[2]


def _read(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise UsageError(f"{option} {path} is larger than {FILE_BYTES_MAX} bytes")
    return data
