"""The two commands as whole processes: settings, help and mistakes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
PACKAGES = ["ingest", "consumers"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a package with arguments, in an empty folder, with nothing but the given settings in the environment."""

    def execute(package: str, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        clean = {name: value for name, value in os.environ.items() if not name.startswith("DLR_")}
        return subprocess.run(
            [sys.executable, "-m", package, *arguments],
            env={**clean, "PYTHONPATH": str(Path(__file__).parents[2]), **environ},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return execute


@pytest.mark.parametrize("package", PACKAGES)
def test_help_lists_the_commands(run: Run, package: str) -> None:
    """Help ends well and speaks on standard output."""
    done = run(package, "--help")

    assert done.returncode == 0
    assert f"Usage: python -m {package}" in done.stdout
    assert "config" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("package", PACKAGES)
def test_config_shows_value_and_origin_and_hides_secrets(run: Run, tmp_path: Path, package: str) -> None:
    """The effective settings come out with their places; nobody learns a password from them."""
    (tmp_path / "dlr.toml").write_text('group_id = "from-file"\nlog_level = "error"\n')
    (tmp_path / "password").write_text("hunter2\n")
    environ = {
        "DLR_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "DLR_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "DLR_KAFKA_SASL_USERNAME": "me",
        "DLR_KAFKA_SASL_PASSWORD_FILE": "password",
        "DLR_POSTGRES_DSN": "postgresql://me:hunter2@db/results",
        "DLR_LOG_LEVEL": "warning",
    }

    done = run(package, "config", "--config", "dlr.toml", "--late-window-s", "5", **environ)

    rows = [tuple(line.split(maxsplit=2)) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert done.stderr == ""
    assert ("DLR_GROUP_ID", "from-file", "the file dlr.toml, group_id") in rows
    assert ("DLR_LOG_LEVEL", "warning", "the environment, DLR_LOG_LEVEL") in rows
    assert ("DLR_LATE_WINDOW_S", "5", "the command line, --late-window-s") in rows
    assert ("DLR_REPORTS_TOPIC", "sms.status-reports", "default") in rows
    assert ("DLR_LOG_FORMAT", "json", "default") in rows
    assert ("DLR_KAFKA_SASL_PASSWORD", "(hidden)", "the environment, DLR_KAFKA_SASL_PASSWORD_FILE") in rows
    assert "hunter2" not in done.stdout


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("arguments", "environ", "line"),
    [
        ([], {"DLR_GRUOP_ID": "x"}, "unknown setting DLR_GRUOP_ID in the environment; did you mean DLR_GROUP_ID?"),
        ([], {"DLR_LATE_WINDOW_S": "soon"}, "DLR_LATE_WINDOW_S (from the environment) is 'soon' but needs"),
        (["--group-id", "a b"], {}, "--group-id (from the command line) is 'a b' but needs"),
        (["--group", "x"], {}, "No such option: --group"),
        (["--config", "none.toml"], {}, "--config none.toml: No such file or directory"),
    ],
)
def test_a_wrong_setting_ends_in_one_line(
    run: Run, package: str, arguments: list[str], environ: dict[str, str], line: str
) -> None:
    """Status 2 and one line on standard error, for every command alike."""
    done = run(package, "config", *arguments, **environ)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1
