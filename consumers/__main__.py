"""`python -m consumers`: joins reports into results and writes them to their destination (contract.md section 1).

The arguments and the environment are read here and nowhere else, and here the parts are joined. Heavy modules are
imported inside the commands, so that help and mistakes are quick.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from consumers.settings import (
    AssembleSettings,
    AuditSettings,
    ConsumersSettings,
    DeadLettersSettings,
    SinkSettings,
)
from ingest.contract.settings import PREFIX, LogSettings, all_fields
from ingest.runtime.cli import Cli, print_effective
from ingest.runtime.settings import Loaded, Surface

SURFACE = Surface(prefix=PREFIX, fields=all_fields())


def _prepare(settings: LogSettings) -> None:
    from ingest.runtime import logs  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level)


cli = Cli(
    "python -m consumers",
    "Status reports from Kafka: results, one per message, and where they go.",
    surface=SURFACE,
    prepare=_prepare,
)


@cli.command(AssembleSettings)
def assemble(
    loaded: Loaded[AssembleSettings],
    *,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="go on where memory or input was lost, in place of status 1")
    ] = False,
) -> None:
    """Remove repeats, join the parts of long messages, and write one result per message, exactly once."""
    from consumers.commands.assemble import assemble as run_assembler  # noqa: PLC0415
    from consumers.commands.ledgers import local_ledgers  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    run(run_assembler(loaded.settings, local_ledgers(loaded.settings), accept_loss=accept_loss))


@cli.command(SinkSettings)
def sink(
    loaded: Loaded[SinkSettings],
    kind: Annotated[str, typer.Argument(metavar="postgres|sqlite|jsonl", help="where results go")],
    *,
    no_create: Annotated[bool, typer.Option("--no-create", help="do not make the table if it is missing")] = False,
    print_ddl: Annotated[bool, typer.Option("--print-ddl", help="print what makes the table, and end")] = False,
) -> None:
    """Write results to a destination; the higher revision of a message always stays."""
    from consumers.commands.sinks import ddl_of  # noqa: PLC0415

    if print_ddl:
        typer.echo(ddl_of(kind), nl=False)
        return
    from consumers.commands.sink import deliver  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    run(deliver(loaded.settings, kind, create=not no_create))


@cli.command(AuditSettings)
def audit(
    loaded: Loaded[AuditSettings],
    *,
    truth: Annotated[Path, typer.Option(help="file that `python -m ingest simulate --truth` wrote")],
    sink: Annotated[str | None, typer.Option(help="also compare what this sink holds: postgres, sqlite, jsonl")] = None,
    wait: Annotated[float, typer.Option(min=0, help="seconds to look again while something is missing")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Compare topics and sink with the truth; status 1 if anything is lost, wrong or repeated."""
    from consumers.commands.audit import compare  # noqa: PLC0415
    from consumers.commands.sinks import open_for_reading  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    open_sink = None if sink is None else partial(open_for_reading, loaded.settings, sink)
    run(compare(loaded.settings, truth, sink=sink, open_sink=open_sink, wait_s=wait, as_json=as_json))


letters = cli.group("dead-letters", "Look at dead letters and send them back through.")

_Name = Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="a dead letter")]
_Names = Annotated[list[str] | None, typer.Argument(metavar="[PARTITION:OFFSET]...", help="these; else all that match")]
_Reason = Annotated[str | None, typer.Option(help="only those with this dlq-reason")]
_From = Annotated[str | None, typer.Option("--from", help="only those from this time on, such as 2026-11-23T10:00:00Z")]
_To = Annotated[str | None, typer.Option("--to", help="only those before this time")]
_Limit = Annotated[int | None, typer.Option(min=1, help="at most so many")]


@cli.command(DeadLettersSettings, "list", under=letters)
def list_(
    loaded: Loaded[DeadLettersSettings],
    *,
    reason: _Reason = None,
    since: _From = None,
    until: _To = None,
    limit: _Limit = None,
) -> None:
    """List dead letters, a line each."""
    from consumers.commands.dead_letters import filter_of, list_letters  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    run(list_letters(loaded.settings, filter_of(reason, since, until), limit))


@cli.command(DeadLettersSettings, under=letters)
def show(loaded: Loaded[DeadLettersSettings], name: _Name) -> None:
    """Print one dead letter, headers and value."""
    from consumers.commands.dead_letters import show_letter  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    run(show_letter(loaded.settings, name))


@cli.command(DeadLettersSettings, under=letters)
def replay(
    loaded: Loaded[DeadLettersSettings],
    names: _Names = None,
    *,
    reason: _Reason = None,
    since: _From = None,
    until: _To = None,
    limit: _Limit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be sent")] = False,
) -> None:
    """Send dead letters back through, each with one attempt more; status 1 if any still cannot be used."""
    from consumers.commands.dead_letters import filter_of, replay_letters  # noqa: PLC0415
    from consumers.commands.sinks import open_for_writing  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    wanted = filter_of(reason, since, until)
    open_sink = partial(open_for_writing, loaded.settings)
    run(replay_letters(loaded.settings, names or [], wanted, limit, dry_run=dry_run, open_sink=open_sink))


@cli.command(ConsumersSettings)
def config(loaded: Loaded[ConsumersSettings]) -> None:
    """Print the effective settings and where each came from; secrets are hidden."""
    from ingest.runtime.logs import effective_format  # noqa: PLC0415

    print_effective(SURFACE, loaded, {"log_format": effective_format(None)})


def main() -> int:
    """Run the command and return its exit status."""
    return cli.run(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
