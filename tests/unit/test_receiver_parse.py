"""How the head of a request is read (contract.md section 3)."""

import orjson
import pytest

from ingest.contract.push import Route
from ingest.receiver.durable import AckMode
from ingest.receiver.parse import is_identity, is_of_type, is_plainly_chunked, target_path
from ingest.receiver.statuses import NOT_FOUND, ONLY_POST, SUCCESS, come_back


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/report", "/report"),
        ("/report?", "/report"),
        ("/report?a=/b?c", "/report"),
        ("/re%70ort", "/re%70ort"),
        ("/report/", "/report/"),
        ("//report", "//report"),
        ("/report#x", "/report#x"),
        ("http://a.example.com:80/report?x", "/report"),
        ("http://a.example.com", ""),
        ("http:///report", "/report"),
        ("a.example.com:80", "a.example.com:80"),
        ("*", "*"),
        ("/http://a/report", "/http://a/report"),
        ("", ""),
    ],
)
def test_the_path_of_a_target_is_what_was_sent(target: str, path: str) -> None:
    """Nothing is decoded or normalised; the query goes, and of the absolute form scheme and authority."""
    assert target_path(target) == path


@pytest.mark.parametrize(
    ("content_type", "batch", "single"),
    [
        (None, True, True),
        ("", True, True),
        (";charset=utf-8", True, True),
        ("application/json", True, False),
        ("APPLICATION/JSON ;x", True, False),
        ("application/json-seq", False, False),
        ("application/x-www-form-urlencoded", False, True),
        ("application/x-www-form-urlencoded; charset=utf-8", False, True),
        ("text/plain", False, False),
        ("*/*", False, False),
    ],
)
def test_content_types(content_type: str | None, batch: bool, single: bool) -> None:  # noqa: FBT001
    """Case and parameters do not count; one that names nothing is as good as a missing one."""
    assert (is_of_type(content_type, Route.BATCH), is_of_type(content_type, Route.SINGLE)) == (batch, single)


@pytest.mark.parametrize(
    ("codings", "plain"),
    [
        ([], True),
        (["identity"], True),
        (["Identity , identity", ""], True),
        (["gzip"], False),
        (["identity", "gzip"], False),
        (["identity,gzip"], False),
    ],
)
def test_content_encodings(codings: list[str], plain: bool) -> None:  # noqa: FBT001
    """Only `identity` is taken, over all headers."""
    assert is_identity(codings) is plain


@pytest.mark.parametrize(("codings", "plain"), [(["chunked"], True), (["Chunked "], True), (["gzip, chunked"], False)])
def test_transfer_encodings(codings: list[str], plain: bool) -> None:  # noqa: FBT001
    """A body that is encoded on its way is not what was signed and counted."""
    assert is_plainly_chunked(codings) is plain


def test_the_head_of_an_answer_stands_ready() -> None:
    """Status line, type and length; what differs from answer to answer is added when it is sent."""
    assert SUCCESS.head == (
        b"HTTP/1.1 200 OK\r\nServer: dlrflow\r\nContent-Type: application/json\r\nContent-Length: 43\r\n"
    )
    assert ONLY_POST.head.endswith(b"Allow: POST\r\n")
    assert orjson.loads(NOT_FOUND.body) == {"returnCode": 404, "returnCodeDesc": "There is nothing at this path."}


@pytest.mark.parametrize(("after_s", "header"), [(0, "1"), (0.2, "1"), (1, "1"), (1.01, "2"), (5.0, "5")])
def test_retry_after_is_in_whole_seconds(after_s: float, header: str) -> None:
    """Rounded up, at least one."""
    assert come_back(after_s).headers == (("Retry-After", header),)


@pytest.mark.parametrize("mode", AckMode)
def test_every_mode_states_its_guarantee(mode: AckMode) -> None:
    """One sentence for the line at the start."""
    assert mode.guarantee.startswith("a push is answered once ")


def test_blanks_of_unicode_are_no_blanks_of_http() -> None:
    """They belong to the name of a type or coding, which then is another one."""
    assert not is_of_type("\u2028application/json", Route.BATCH)
    assert not is_identity(["\u2028identity"])
    assert not is_plainly_chunked(["chunked\x85"])
