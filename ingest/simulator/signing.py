"""Signs requests as the platform does (docs/protocol.md section 4): what `simulate --sign` sends."""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, unquote

ALGORITHM = "SDK-HMAC-SHA256"


def canonical_request(method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> str:
    """The text whose hash is signed.

    Args:
        method: upper case.
        path: as on the request line, without the query.
        query: as on the request line, without the question mark.
        headers: the headers to sign, lower-case names in the order in which they are signed.
        body: as sent.
    """
    pieces = "/".join(quote(piece, safe="-_.~") for piece in unquote(path).split("/"))
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"), name)
        for name, value in parse_qsl(query, keep_blank_values=True)
    )
    return "\n".join(
        [
            method,
            pieces if pieces.endswith("/") else f"{pieces}/",
            "&".join(f"{name}={value}" for name, value, _ in pairs),
            "".join(f"{name}:{value.strip()}\n" for name, value in headers.items()),
            ";".join(headers),
            hashlib.sha256(body).hexdigest(),
        ]
    )


def signature(secret_key: str, sdk_date: str, canonical: str) -> str:
    """Lower-case hex HMAC-SHA256 over the text to sign."""
    to_sign = f"{ALGORITHM}\n{sdk_date}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return hmac.new(secret_key.encode(), to_sign.encode(), hashlib.sha256).hexdigest()


def signed_headers(
    access_key: str, secret_key: str, *, path: str, host: str, content_type: str, body: bytes, now: datetime
) -> dict[str, str]:
    """The headers that a signed POST carries, `Authorization` included."""
    sdk_date = now.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {"content-type": content_type, "host": host, "x-sdk-date": sdk_date}
    signed = signature(secret_key, sdk_date, canonical_request("POST", path, "", headers, body))
    names = ";".join(headers)
    headers["Authorization"] = f"{ALGORITHM} Access={access_key}, SignedHeaders={names}, Signature={signed}"
    return headers
