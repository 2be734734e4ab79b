"""Signs requests as docs/protocol.md section 4 says, for tests: from decoded parts, with nothing of the product."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")
BLANKS: Final = " \t"
"""Of HTTP; Unicode has others, which are part of a value."""

ACCESS_KEY: Final = "exampleAk"
SECRET_KEY: Final = "exampleSk*1231d881wd"  # noqa: S105 - the published one
DATE: Final = "20241212T070653Z"
DATE_S: Final = 1_733_987_213
"""`DATE` in seconds since the epoch."""


def encoded(text: str) -> str:
    """Percent-encoded, upper-case hex, but for unreserved characters."""
    return "".join(chr(byte) if byte in UNRESERVED else f"%{byte:02X}" for byte in text.encode())


@dataclass(frozen=True)
class Signer:
    """One request and who signs it.

    Attributes:
        path: decoded.
        query: names and values, decoded.
        headers: those that are signed, in their order, `x-sdk-date` among them.
        payload_hash: instead of the hash of the body.
    """

    path: str = "/batchReport"
    query: Sequence[tuple[str, str]] = ()
    headers: Sequence[tuple[str, str]] = field(
        default=(("content-type", "application/json"), ("host", "dlr.example.com"), ("x-sdk-date", DATE))
    )
    body: bytes = b'{"statusReportList":[]}'
    method: str = "POST"
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    payload_hash: str | None = None
    compares_encoded_names: bool = False

    def but(self, **changes: Any) -> "Signer":
        """The same with some parts changed."""
        return replace(self, **changes)

    def canonical(self) -> str:
        """The canonical request."""
        path = "/".join(encoded(piece) for piece in self.path.split("/"))
        ordered = sorted(
            self.query,
            key=lambda pair: (encoded(pair[0]) if self.compares_encoded_names else pair[0], encoded(pair[1])),
        )
        lines = [self.method, path if path[-1:] == "/" else path + "/"]
        lines.append("&".join(encoded(name) + "=" + encoded(value) for name, value in ordered))
        lines += [f"{name.lower()}:{value.strip(BLANKS)}" for name, value in self.headers]
        lines += ["", ";".join(name.lower() for name, _ in self.headers)]
        lines.append(hashlib.sha256(self.body).hexdigest() if self.payload_hash is None else self.payload_hash)
        return "\n".join(lines)

    def signature(self) -> str:
        """The signature as lower-case hex."""
        [date] = [value for name, value in self.headers if name.lower() == "x-sdk-date"] or [DATE]
        text = "\n".join(["SDK-HMAC-SHA256", date.strip(), hashlib.sha256(self.canonical().encode()).hexdigest()])
        return hmac.new(self.secret_key.encode(), text.encode(), hashlib.sha256).hexdigest()

    def authorization(self, after_comma: str = " ") -> str:
        """The value of `Authorization`."""
        names = ";".join(name for name, _ in self.headers)
        parts = [f"Access={self.access_key}", f"SignedHeaders={names}", f"Signature={self.signature()}"]
        return "SDK-HMAC-SHA256 " + f",{after_comma}".join(parts)

    def wire_headers(self) -> list[tuple[bytes, bytes]]:
        """The signed headers and `Authorization`, as they are received."""
        pairs = [*self.headers, ("Authorization", self.authorization())]
        return [(name.encode(), value.encode()) for name, value in pairs]
