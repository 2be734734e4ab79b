"""`python -m ingest verify`: says step by step where a captured request is not what was signed."""

from pathlib import Path

import pytest

from ingest.__main__ import cli
from tests.signer import ACCESS_KEY, DATE, SECRET_KEY, Signer

EXAMPLE = (Path(__file__).parents[1] / "data" / "batch_example.json").read_bytes()
V2_CANONICAL = "a65b9e0f7d35f0b8d42bf9184cb46a044726fc85315f7db18caeb187b4795f1f"
V2_SIGNATURE = "c65b4ed12550e6b21c0a88e8d7b048a55028a6a7b684c44f95ff5784bab95e82"
NAMES = "connection;content-length;content-type;host;x-sdk-date"
V2 = f"""POST /batchReport HTTP/1.1
Connection: close
Content-Length: 331
Content-Type: application/JSON;charset=UTF-8
Host: 205.145.111.168:9330
X-Sdk-Date: 20241212T070653Z
Authorization: SDK-HMAC-SHA256 Access={ACCESS_KEY}, SignedHeaders={NAMES}, Signature={V2_SIGNATURE}
"""


class Desk:
    """Where an operator has put a captured request."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.head, self.body, self.keys = folder / "head.txt", folder / "body.json", folder / "keys.json"
        self.head.write_text(V2)
        self.body.write_bytes(EXAMPLE)
        self.keys.write_text(f'{{"{ACCESS_KEY}":"{SECRET_KEY}"}}')
        self._capsys = capsys

    def verify(self, *more: str, at: str | None = DATE, body: bool = True, **settings: str) -> tuple[int, str, str]:
        """Status, output and errors of the command."""
        arguments = ["verify", "--head", str(self.head), *more]
        arguments += ["--body", str(self.body)] if body else []
        arguments += [] if at is None else ["--at", at]
        environ = {
            "DLR_AUTH_KEYS_FILE": str(self.keys),
            **{f"DLR_{key.upper()}": said for key, said in settings.items()},
        }
        status = cli.run(arguments, environ)
        said = self._capsys.readouterr()
        assert SECRET_KEY not in said.out + said.err
        assert "Traceback" not in said.err
        return status, said.out, said.err


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    """V2 as captured."""
    return Desk(tmp_path, capsys)


def test_a_right_signature_is_status_0_and_every_step_is_shown(desk: Desk) -> None:
    """Access key, headers, date, body, canonical request, text to sign, candidates; neither secret nor signature."""
    status, out, err = desk.verify()

    assert (status, err) == (0, "")
    assert "Access key: exampleAk, in the keys file\n" in out
    assert "  host: 205.145.111.168:9330\n" in out
    assert "Date: 0 s before 20241212T070653Z, within the 900 s of DLR_AUTH_CLOCK_SKEW_S\n" in out
    assert "Body: 331 bytes, sha256 37d4d688d91dce3c3baa5bfb86b5d90a5baff6e8b1adc45b10443e63ca1b97ab\n" in out
    assert "  | /batchReport/\n  | \n  | connection:close\n" in out
    assert f"  | SDK-HMAC-SHA256\n  | 20241212T070653Z\n  | {V2_CANONICAL}\n" in out
    assert "  matches: path /batchReport/, host 205.145.111.168:9330, connection close, content-length 331\n" in out
    assert out.endswith("Verdict: the signature is right\n")
    assert V2_SIGNATURE not in out


@pytest.mark.parametrize("at", ["20241212T071200Z", "2024-12-12T07:12:00Z", "2024-12-12T08:12:00+01:00"])
def test_the_time_to_judge_at_has_several_forms(desk: Desk, at: str) -> None:
    """As in the header, or as elsewhere."""
    assert desk.verify(at=at)[0] == 0


def test_a_request_of_long_ago_is_stale_but_its_signature_is_told(desk: Desk) -> None:
    """Without --at it is judged now, as the receiver would."""
    status, out, err = desk.verify(at=None)

    assert status == 1
    assert "BEYOND the 900 s" in out
    assert "  matches: path" in out
    assert "hint: pass --at with the value of X-Sdk-Date" in out
    assert err == "error: the receiver answers 401 and counts the reason stale\n"


def test_the_body_may_follow_the_head_in_one_file(desk: Desk) -> None:
    """A capture as it is, with CRLF."""
    desk.head.write_bytes(V2.replace("\n", "\r\n").encode() + b"\r\n" + EXAMPLE)
    assert desk.verify(body=False)[0] == 0


def test_lines_of_headers_alone_do(desk: Desk) -> None:
    """Method and path come from options, or are those of a batch."""
    desk.head.write_text(V2.partition("\n")[2])

    status, out, _ = desk.verify()
    assert status == 0
    assert "no request line: taken for POST /batchReport" in out
    assert desk.verify("--method", "POST", "--target", "/batchReport")[0] == 0
    assert desk.verify("--target", "/report")[0] == 1


def captured(desk: Desk, signer: Signer, **changed: str) -> None:
    """Put down a request whose headers were changed on the way; an empty one was taken away."""
    lines = [f"{name.decode()}: {value.decode()}" for name, value in signer.wire_headers()]
    lines = [
        f"{name}: {changed.get(name.replace('-', '_'), value)}"
        for name, _, value in (line.partition(": ") for line in lines)
        if changed.get(name.replace("-", "_"), value)
    ]
    desk.head.write_text("\n".join(["POST /batchReport HTTP/1.1", *lines, ""]))
    desk.body.write_bytes(signer.body)


BEHIND = Signer(headers=[("connection", "close"), ("content-length", "23"), *Signer().headers])


@pytest.mark.parametrize(
    ("changed", "hint"),
    [
        (
            {"host": "dlr.example.com:443"},
            "it is right with host dlr.example.com: name it in DLR_AUTH_EXTERNAL_HOSTS",
        ),
        ({"connection": "keep-alive"}, "it is right with connection close: set DLR_AUTH_CONNECTION_VALUES"),
        ({"connection": ""}, "it is right with connection close: set DLR_AUTH_CONNECTION_VALUES"),
        ({"content_length": ""}, "it is right with the length of the body, which a proxy sends chunked: any setting"),
        ({"content_type": ""}, "a proxy may have taken content-type away, but that is not all"),
        (
            {"host": "backend"},
            "the host differs if a proxy sets its own: name the one that the platform calls in DLR_AUTH_EXTERNAL_HOSTS",
        ),
    ],
)
def test_what_a_proxy_changed_is_found(desk: Desk, changed: dict[str, str], hint: str) -> None:
    """And the setting for it is named; with what only could be, as a guess."""
    captured(desk, BEHIND, **changed)

    status, out, _ = desk.verify()

    assert status == 1
    assert f"hint: {hint}" in out


def test_with_the_settings_for_the_proxy_it_verifies(desk: Desk) -> None:
    """And the candidate that matches is named."""
    captured(desk, BEHIND.but(path="/sms/batchReport"), host="backend", connection="")

    status, out, _ = desk.verify(
        auth_external_hosts="dlr.example.com", auth_path_prefix="/sms", auth_connection_values="keep-alive,close"
    )

    assert status == 0
    assert "  connection: MISSING\n    also tried: keep-alive, close\n" in out
    assert out.count("  differs: ") == 7
    assert "  matches: path /sms/batchReport/, host dlr.example.com, connection close, content-length 23\n" in out
    assert "Canonical request, the one that matches:\n  | POST\n  | /sms/batchReport/\n" in out


def test_a_body_that_an_editor_has_ended_is_found(desk: Desk) -> None:
    """The commonest mistake with captured bodies; together with others as well."""
    desk.body.write_bytes(EXAMPLE + b"\n")

    status, out, _ = desk.verify()
    assert status == 1
    assert "hint: it is right without the newline at the end of the body file\n" in out

    desk.head.write_text(V2.replace("Connection: close", "Connection: keep-alive"))
    out = desk.verify()[1]
    assert "hint: it is right without the newline at the end of the body file\n" in out
    assert "hint: it is right with connection close" in out

    desk.keys.write_text(f'{{"{ACCESS_KEY}":"other"}}')
    out = desk.verify()[1]
    assert "hint: content-length is 331 but the body has 332 bytes: does the file end with a newline" in out
    assert "hint: the secret key may be another one" in out


def test_secrets_under_the_wrong_names_are_found(desk: Desk) -> None:
    """Two pairs are active at once, and easily exchanged."""
    desk.keys.write_text(f'{{"{ACCESS_KEY}":"other","second":"{SECRET_KEY}"}}')
    assert "hint: it is right with the secret of second" in desk.verify()[1]

    desk.keys.write_text(f'{{"second":"{SECRET_KEY}"}}')
    status, out, err = desk.verify()
    assert status == 1
    assert "Access key: exampleAk, NOT in the keys file" in out
    assert "hint: the keys file has second" in out
    assert err.endswith("reason unknown-key\n")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Host: 205.145.111.168:9330\n", "", "  host: MISSING\n"),
        ("Host: ", "Host: a\nHost: ", "  host: REPEATED, 2 times, different values: a and 205.145.111.168:9330\n"),
        (
            "Host: ",
            "Host: 205.145.111.168:9330\nHost: ",
            "  host: REPEATED, 2 times, each 205.145.111.168:9330\n",
        ),
        ("content-type;host", "content-type", "  host: NOT SIGNED, but it must be\n"),
        ("X-Sdk-Date: 2024", "X-Sdk-Date: 24", "Date: X-Sdk-Date is missing or no time such as 20241212T070653Z\n"),
        ("Authorization:", "X-Authorization:", "Verdict: refused, there is no Authorization header\n"),
        ("SDK-HMAC-SHA256", "SDK-HMAC-SHA1", "Verdict: refused, the scheme of Authorization is not SDK-HMAC-SHA256\n"),
        (
            "Host: ",
            "X-Sdk-Content-Sha256: UNSIGNED-PAYLOAD\nHost: ",
            "Verdict: refused, the sender did not sign the body",
        ),
    ],
)
def test_what_is_missing_or_repeated_is_named(desk: Desk, old: str, new: str, words: str) -> None:
    """Status 1, and the line that says it."""
    desk.head.write_text(V2.replace(old, new))

    status, out, _ = desk.verify()

    assert status == 1
    assert words in out


def test_a_hint_that_would_not_help_is_none(desk: Desk) -> None:
    """Connection is missing, but something else was changed as well."""
    captured(desk, BEHIND, connection="", content_type="text/json")

    out = desk.verify()[1]

    assert "hint: a proxy may have taken connection away, but that is not all" in out
    assert "DLR_AUTH_CONNECTION_VALUES" not in out


@pytest.mark.parametrize("name", ["authorization", "x-forwarded-authorization"])
def test_a_signature_among_the_signed_headers_is_hidden(desk: Desk, name: str) -> None:
    """Whoever signs it or sends it along: it is not in the canonical request that is printed either."""
    line = f"Access={ACCESS_KEY}, SignedHeaders={NAMES};{name}, Signature={V2_SIGNATURE}\n"
    desk.head.write_text(V2.replace(f"Access={ACCESS_KEY}, SignedHeaders={NAMES}, Signature={V2_SIGNATURE}\n", line))
    if name != "authorization":
        desk.head.write_text(desk.head.read_text() + f"{name}: SDK-HMAC-SHA256 {line}")

    status, out, err = desk.verify()

    assert status == 1
    assert f"  | {name}:SDK-HMAC-SHA256 Access={ACCESS_KEY}" in out
    assert "Signature=(hidden)" in out
    assert V2_SIGNATURE not in out + err


@pytest.mark.parametrize(
    ("signer", "line", "words"),
    [
        (BEHIND.but(path="/other"), "POST /other", "404 for this path: configured are /batchReport and /report"),
        (BEHIND.but(method="PUT"), "PUT /batchReport", "405 for this method"),
        (BEHIND.but(path="/report"), "POST /report", "415 for this content type"),
        (
            BEHIND.but(headers=[*BEHIND.headers, ("content-encoding", "gzip")]),
            "POST /batchReport",
            "415 for this content encoding",
        ),
    ],
)
def test_what_is_refused_before_the_signature_is_said(desk: Desk, signer: Signer, line: str, words: str) -> None:
    """Beside a signature that is right, and in place of the 401 that would never be answered."""
    captured(desk, signer)
    desk.head.write_text(desk.head.read_text().replace("POST /batchReport", line))

    status, out, _ = desk.verify()
    assert status == 0
    assert out.endswith(
        f"Verdict: the signature is right\n  hint: but the receiver answers {words}, before it looks at the signature\n"
    )

    desk.keys.write_text(f'{{"{ACCESS_KEY}":"other"}}')
    status, out, err = desk.verify()
    assert status == 1
    assert f"hint: the receiver answers {words}" in out
    assert err.startswith(f"error: the signature is refused for the reason wrong; but the receiver answers {words}")


def test_what_is_shown_cannot_play_tricks_with_the_terminal(desk: Desk) -> None:
    """Headers are text of an unknown sender."""
    desk.head.write_bytes(V2.replace("close", "cl\x1b[31mose").encode() + b"X-Other: \xff\n")
    out = desk.verify()[1]
    assert "\x1b" not in out
    assert "connection: cl\\x1b[31mose\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--body", "none.json"), "--body none.json cannot be read: No such file or directory"),
        (("--head", "none.txt"), "--head none.txt cannot be read: No such file or directory"),
        (("--at", "yesterday"), "--at needs a time such as 20241212T070653Z"),
        (("--nonsense", "1"), "No such option"),
    ],
)
def test_mistakes_are_status_2(desk: Desk, arguments: tuple[str, ...], words: str) -> None:
    """In one line."""
    status, out, err = desk.verify(*arguments, body="--body" not in arguments, at=None)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_more_mistakes_are_status_2(desk: Desk) -> None:
    """No keys file, one that cannot be used, and a file that is no head."""
    assert desk.verify(auth_keys_file="")[::2] == (
        2,
        "error: DLR_AUTH_KEYS_FILE is unset: there is no key to verify with\n",
    )
    desk.head.write_text("\n")
    assert desk.verify()[::2] == (2, f"error: --head {desk.head} is empty\n")
    desk.head.write_text("nonsense\n")
    assert desk.verify()[2].startswith(f"error: --head {desk.head} has a line that is neither")
    desk.head.write_text(V2)
    desk.keys.write_text("{}")
    assert desk.verify()[::2] == (2, f"error: the keys file {desk.keys} (DLR_AUTH_KEYS_FILE) holds no access key\n")
