"""Commands whose settings are options, and what a process ends with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from pydantic import Field, SecretStr

from ingest.runtime.cli import Cli, print_effective
from ingest.runtime.errors import FoundError, ServiceAwayError, UsageError
from ingest.runtime.settings import Loaded, Settings, Surface


class Boat(Settings):
    """Settings of a command."""

    sail_count: Annotated[int, Field(ge=1)] = Field(default=2, description="sails")
    motor: bool = Field(default=False, description="has a motor")
    key: SecretStr | None = Field(default=None, description="key of the motor")


SURFACE = Surface(prefix="BOAT_", fields=Boat.model_fields)


@dataclass
class Harbour:
    """A command line with commands that note what they were called with."""

    called: list[tuple[object, ...]] = field(default_factory=list)
    error: BaseException | None = None

    def run(self, *arguments: str, environ: Mapping[str, str] | None = None) -> int:
        """Run it."""
        cli = Cli("python -m boats", "Boats.", surface=SURFACE)
        inside = cli.group("crew", "The crew.")

        @cli.command(Boat)
        def sail(
            loaded: Loaded[Boat],
            to: Annotated[str, typer.Argument()],
            *,
            night: Annotated[bool, typer.Option()] = False,
        ) -> None:
            """Sail somewhere."""
            self.called.append((loaded.settings, to, night))
            if self.error:
                raise self.error

        @cli.command(Boat, "list", under=inside)
        def list_(loaded: Loaded[Boat]) -> None:
            """List the crew."""
            print_effective(SURFACE, loaded, {"key": "none"})

        return cli.run(arguments, environ or {})


@pytest.fixture
def harbour() -> Harbour:
    """Commands to run."""
    return Harbour()


@pytest.fixture
def line_of(harbour: Harbour, capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[str]], tuple[int, str]]:
    """Run arguments and return status and standard error, which is one line."""

    def run(arguments: Sequence[str]) -> tuple[int, str]:
        status = harbour.run(*arguments)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1
        return status, captured.err.removesuffix("\n")

    return run


def test_settings_are_options_and_own_options_stay(harbour: Harbour) -> None:
    """A command gets its settings from the options, and its own arguments beside them."""
    assert harbour.run("sail", "Kiel", "--sail-count", "5", "--motor", "--night", "--key", "k") == 0

    assert harbour.called == [(Boat(sail_count=5, motor=True, key=SecretStr("k")), "Kiel", True)]


def test_a_switch_can_be_switched_off(harbour: Harbour) -> None:
    """What the environment switches on, an option switches off."""
    harbour.run("sail", "Kiel", "--no-motor", environ={"BOAT_MOTOR": "true"})

    assert harbour.called == [(Boat(motor=False), "Kiel", False)]


def test_settings_come_from_environment_and_file(harbour: Harbour, tmp_path: Path) -> None:
    """Options that are not given leave the other places to decide; a secret may stand in a file."""
    (tmp_path / "boat.toml").write_text("sail_count = 7")
    (tmp_path / "key").write_text("from file\n")
    files = ["--config", str(tmp_path / "boat.toml"), "--key-file", str(tmp_path / "key")]

    harbour.run("sail", "Kiel", *files, environ={"BOAT_MOTOR": "1"})

    assert harbour.called == [(Boat(sail_count=7, motor=True, key=SecretStr("from file")), "Kiel", False)]


def test_commands_can_be_grouped(harbour: Harbour, capsys: pytest.CaptureFixture[str]) -> None:
    """A group has commands with settings of their own; they can be shown with their origins."""
    assert harbour.run("crew", "list", "--sail-count", "3", environ={"BOAT_MOTOR": "1"}) == 0

    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["BOAT_SAIL_COUNT", "3", "the command line, --sail-count"],
        ["BOAT_MOTOR", "true", "the environment, BOAT_MOTOR"],
        ["BOAT_KEY", "none", "default"],
    ]


def test_help_shows_every_setting_with_its_default(harbour: Harbour, capsys: pytest.CaptureFixture[str]) -> None:
    """Help is complete and ends well."""
    assert harbour.run("sail", "--help") == 0

    text = " ".join(capsys.readouterr().out.split())
    assert "--sail-count NUMBER sails [default: 2]" in text
    assert "--motor / --no-motor has a motor [default: false]" in text
    assert "--key SECRET" in text
    assert "--key-file FILE" in text
    assert "--config FILE" in text
    assert "Sail somewhere." in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "error: Missing command."),
        (["sale"], "error: No such command 'sale'. Did you mean 'sail'?"),
        (["sail"], "error: Missing argument 'to'."),
        (["sail", "Kiel", "--anchor"], "error: No such option: --anchor"),
        (["sail", "Kiel", "--sail-count", "0"], "error: --sail-count (from the command line) is '0' but needs"),
        (["sail", "Kiel", "--config", "/none"], "error: --config /none: No such file or directory"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    line_of: Callable[[Sequence[str]], tuple[int, str]], arguments: list[str], says: str
) -> None:
    """Whoever typed it wrong reads one line, no traceback and no manual."""
    status, line = line_of(arguments)

    assert status == 2
    assert line.startswith(says)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (FoundError("2 are wrong"), 1, "error: 2 are wrong"),
        (UsageError("port\nis taken"), 2, "error: port is taken"),
        (ServiceAwayError("the sea is away"), 3, "error: the sea is away"),
        (BaseExceptionGroup("", [ExceptionGroup("", [UsageError("inside")]), KeyboardInterrupt()]), 2, "error: inside"),
    ],
)
def test_each_expected_error_has_its_status(
    harbour: Harbour,
    line_of: Callable[[Sequence[str]], tuple[int, str]],
    error: BaseException,
    status: int,
    says: str,
) -> None:
    """The status says who must act; the line says what happened, also out of a task group."""
    harbour.error = error

    assert line_of(["sail", "Kiel"]) == (status, says)


@pytest.mark.parametrize("error", [RuntimeError("ours"), ExceptionGroup("", [RuntimeError("ours")])])
def test_an_unexpected_error_is_not_hidden(harbour: Harbour, error: Exception) -> None:
    """A fault of ours keeps its traceback."""
    harbour.error = error

    with pytest.raises(type(error)):
        harbour.run("sail", "Kiel")


def test_a_setting_outside_the_surface_is_a_fault_of_ours() -> None:
    """A field that no list of settings knows would escape every check of names."""
    cli = Cli("boats", "Boats.", surface=Surface(prefix="BOAT_", fields={}))

    with pytest.raises(ValueError, match="no settings"):

        @cli.command(Boat)
        def sail(loaded: Loaded[Boat]) -> None:
            """Sail."""
