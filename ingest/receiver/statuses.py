"""The closed set of answers, and the exact bytes of their bodies (contract.md section 3)."""

from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Final, Self

import orjson

SUCCESS_BODY: Final = b'{"returnCode":0,"returnCodeDesc":"Success"}'


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of the callback port.

    Attributes:
        status: of HTTP, and the `returnCode` of a refusal.
        body: JSON, without newline.
        headers: those that go with this status, besides the usual ones.
        head: status line and headers as they are sent, but for those that differ from answer to answer.
    """

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    head: bytes = field(init=False)

    def __post_init__(self) -> None:
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "Server: dlrflow",
            "Content-Type: application/json",
            f"Content-Length: {len(self.body)}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        object.__setattr__(self, "head", "".join(f"{line}\r\n" for line in lines).encode())

    @classmethod
    def refusing(cls, status: HTTPStatus, sentence: str) -> Self:
        """An answer that refuses; the sentence says nothing of the inside and quotes nothing of the request."""
        return cls(status, orjson.dumps({"returnCode": int(status), "returnCodeDesc": sentence}))


class RefusedError(Exception):
    """This request gets another answer than success."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status.phrase)
        self.answer = answer


SUCCESS: Final = Answer(HTTPStatus.OK, SUCCESS_BODY)
NOT_HTTP: Final = Answer.refusing(HTTPStatus.BAD_REQUEST, "The request is not valid HTTP.")
FORBIDDEN: Final = Answer.refusing(HTTPStatus.FORBIDDEN, "This network may not push here.")
NOT_AUTHENTIC: Final = replace(
    Answer.refusing(HTTPStatus.UNAUTHORIZED, "The signature is missing, wrong or stale."),
    headers=(("WWW-Authenticate", "SDK-HMAC-SHA256"),),
)
NOT_FOUND: Final = Answer.refusing(HTTPStatus.NOT_FOUND, "There is nothing at this path.")
ONLY_POST: Final = replace(
    Answer.refusing(HTTPStatus.METHOD_NOT_ALLOWED, "Only POST is served here."), headers=(("Allow", "POST"),)
)
OTHER_TYPE: Final = Answer.refusing(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The content type is not the one of this path.")
OTHER_CODING: Final = Answer.refusing(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Encoded bodies are not taken.")
TOO_LARGE: Final = Answer.refusing(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large.")
TOO_SLOW: Final = Answer.refusing(HTTPStatus.REQUEST_TIMEOUT, "The body was not complete in time.")
FAILED: Final = Answer.refusing(HTTPStatus.INTERNAL_SERVER_ERROR, "The receiver failed at this request.")


def bad_request(sentence: str) -> Answer:
    """The body cannot be used as a whole."""
    return Answer.refusing(HTTPStatus.BAD_REQUEST, sentence)


def come_back(retry_after_s: float) -> Answer:
    """Nothing could keep the push now. `Retry-After` is in whole seconds, rounded up, at least one."""
    seconds = max(1, -int(-retry_after_s // 1))
    answer = Answer.refusing(HTTPStatus.SERVICE_UNAVAILABLE, "The push cannot be kept now.")
    return replace(answer, headers=(("Retry-After", str(seconds)),))
