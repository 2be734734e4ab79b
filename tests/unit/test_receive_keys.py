"""What `receive` tells an operator of keys and networks, and which settings it refuses."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

import consumers.__main__
import ingest.__main__
from ingest.commands.receive_keys import KeysReport, keys_file, warn_of_doubtful
from ingest.contract.settings import AuthSettings, NetworkSettings
from ingest.receiver.keys import Keys
from ingest.runtime.cli import Cli


def test_the_file_is_told_in_metrics_and_log_once_per_change(tmp_path: Path) -> None:
    """Number of keys, alarm, failures; the lines name access keys and never secrets."""
    path, registry, handed = tmp_path / "keys.json", CollectorRegistry(), list[Keys]()
    path.write_text('{"ak1":"hunter1"}')
    path.chmod(0o600)

    def figures() -> list[float | None]:
        names = ("dlrflow_auth_keys", "dlrflow_auth_keys_file_broken", "dlrflow_auth_keys_file_failures_total")
        return [registry.get_sample_value(name) for name in names]

    with capture_logs() as lines:
        file = keys_file(AuthSettings(auth_keys_file=path), registry, handed.append)
        assert file is not None
        assert figures() == [1, 0, 0]
        for content in (b'{"ak1":"hunter1"}', b'{"ak1":"hunter2","ak2":"hunter3"}', b"{", b"{", "cannot be read: gone"):
            file.take(content)
        assert figures() == [2, 1, 2]
        file.take(b'{"ak2":"hunter3"}')
        assert figures() == [1, 0, 2]

    assert [line["event"] for line in lines] == [
        "the keys file has changed",
        *(["the keys file cannot be used: the keys before count on"] * 2),
        "the keys file can be used again",
        "the keys file has changed",
    ]
    assert (lines[0]["added"], lines[0]["changed"], lines[-1]["removed"]) == (["ak2"], ["ak1"], ["ak1"])
    assert "hunter" not in str(lines)
    assert [keys.names() for keys in handed] == [{"ak1", "ak2"}, {"ak2"}]


def test_a_file_that_nobody_could_look_at_for_long_raises_the_alarm(tmp_path: Path) -> None:
    """It ends with the next look, unless the file is broken."""
    path, registry = tmp_path / "keys.json", CollectorRegistry()
    path.write_text('{"ak1":"sk1"}')
    report = KeysReport(path, registry, lambda _: None)
    figures = []
    for tell in (report.late, report.looked, lambda: report.broken("is empty"), report.late, report.looked):
        tell()
        figures.append(registry.get_sample_value("dlrflow_auth_keys_file_broken"))

    assert figures == [1, 0, 1, 1, 1]


def test_a_file_that_everybody_may_read_gets_a_hint(tmp_path: Path) -> None:
    """It holds secrets; but it is served, since some mounts cannot do better."""
    path = tmp_path / "keys.json"
    path.write_text('{"ak1":"sk1"}')
    hints = []
    for mode in (0o644, 0o640):
        path.chmod(mode)
        with capture_logs() as lines:
            keys_file(AuthSettings(auth_keys_file=path), CollectorRegistry(), lambda _: None)
        hints.append([line["event"] for line in lines])

    assert hints == [["every user of this machine may read the keys file"], []]


def test_settings_that_do_not_do_what_they_suggest_are_told() -> None:
    """Those of signatures without keys, and trust in everybody; not what is usual."""
    networks = NetworkSettings.model_validate({"allowed_networks": "10.0.0.0/8", "trusted_proxies": "0.0.0.0/0,::/0"})
    with capture_logs() as lines:
        warn_of_doubtful(AuthSettings(auth_clock_skew_s=60, auth_path_prefix="/sms"), networks)
        told = [line["setting"] for line in lines]
        warn_of_doubtful(AuthSettings(auth_keys_file=Path("keys.json"), auth_clock_skew_s=60), NetworkSettings())
        warn_of_doubtful(AuthSettings(), NetworkSettings.model_validate({"trusted_proxies": "10.0.0.0/8"}))

    assert [line["setting"] for line in lines] == told
    assert told == [
        "DLR_AUTH_CLOCK_SKEW_S",
        "DLR_AUTH_PATH_PREFIX",
        "DLR_TRUSTED_PROXIES",
        "DLR_TRUSTED_PROXIES",
    ]


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("ALLOWED_NETWORKS", "10.0.0.0/33", "needs comma-separated networks such as 10.0.0.0/8"),
        ("ALLOWED_NETWORKS", "10.0.0.1/8", "has host bits set"),
        ("TRUSTED_PROXIES", "proxy.example.com", "needs comma-separated networks such as 10.0.0.0/8"),
        ("AUTH_EXTERNAL_HOSTS", ",".join("abcdefghi"), "needs 8 values at most"),
        ("AUTH_EXTERNAL_HOSTS", "https://dlr.example.com", "needs comma-separated values of a Host header"),
        ("AUTH_PATH_PREFIX", "sms", "needs a path that begins with '/'"),
        ("AUTH_CONNECTION_VALUES", "close,upgrade", "needs comma-separated close or keep-alive"),
        ("AUTH_CLOCK_SKEW_S", "0", "needs a whole number at least 1"),
        ("AUTH_KEYS_FILE", "/none/keys.json", "the keys file /none/keys.json (DLR_AUTH_KEYS_FILE) cannot be read"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], setting: str, value: str, words: str
) -> None:
    """It names the setting and what it needs; nothing was started."""
    environ = {f"DLR_{setting}": value, "DLR_HTTP_PORT": "0", "DLR_ADMIN_PORT": "0"}

    status = ingest.__main__.cli.run(["receive"], environ)

    said = capsys.readouterr()
    assert (status, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert f"DLR_{setting}" in said.err
    assert words in said.err


@pytest.mark.parametrize("command", [ingest.__main__.cli, consumers.__main__.cli])
def test_other_commands_do_not_mind_a_keys_file_that_is_not_theirs(
    capsys: pytest.CaptureFixture[str], command: Cli
) -> None:
    """One environment may serve all processes of a host; only the receiver reads the file."""
    environ = {"DLR_AUTH_KEYS_FILE": "/none/keys.json", "DLR_ALLOWED_NETWORKS": "10.0.0.0/8"}

    status = command.run(["config"], environ)

    assert (status, capsys.readouterr().err) == (0, "")
