"""`python -m ingest acls`: what each process must be allowed to do on Kafka, as a table, as JSON or as commands."""

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import typer

from ingest.contract.acls import PROCESSES, Acl
from ingest.runtime.errors import UsageError
from ingest.settings import AclsSettings

_COLUMNS = ("process", "operation", "resource", "name", "pattern", "why")


def print_acls(settings: AclsSettings, process: str | None, *, principal: str | None, as_json: bool) -> None:
    """Print the rights of one process, or of all.

    Args:
        settings: the names that rights are on.
        process: a name out of `PROCESSES`.
        principal: print commands that give it these rights, and no others.
        as_json: print a JSON object a line.

    Raises:
        UsageError: there is no such process; or commands are asked for without saying for which.
    """
    if process is not None and process not in PROCESSES:
        raise UsageError(f"{process!r} is no process that uses Kafka; choose one of {', '.join(PROCESSES)}")
    if principal is not None and process is None:
        raise UsageError("--principal needs the process whose rights it is to have")
    if principal is not None and as_json:
        raise UsageError("--principal and --json exclude each other")
    found = {name: acls_of(settings, name) for name in ([process] if process else PROCESSES)}
    if principal is not None:
        for acls in found.values():
            for line in commands(acls, principal):
                typer.echo(line)
    elif as_json:
        for name, acls in found.items():
            for acl in acls:
                typer.echo(json.dumps({"process": name, **asdict(acl)}))
    else:
        _print_table([(name, acl) for name, acls in found.items() for acl in acls])


def acls_of(settings: AclsSettings, process: str) -> list[Acl]:
    """The rights of a process under these settings."""
    group = settings.group_of(process.removeprefix("sink-"))
    return PROCESSES[process](settings.acl_names(group_id=settings.group_id, sink_group_id=group))


def commands(acls: Iterable[Acl], principal: str) -> Iterator[str]:
    """Command lines for a shell; `KAFKA_ACLS` in its environment holds the tool with its address and login."""
    for acl in acls:
        pattern = " --resource-pattern-type prefixed" if acl.prefixed else ""
        yield (
            f"${{KAFKA_ACLS:-kafka-acls.sh}} --add --allow-principal {shlex.quote(principal)} "
            f"--operation {acl.operation} --{acl.resource} {shlex.quote(acl.name)}{pattern}"
        )


def _print_table(rows: list[tuple[str, Acl]]) -> None:
    table = [_COLUMNS]
    for process, acl in rows:
        pattern = "prefixed" if acl.prefixed else "literal"
        why = acl.why if acl.needed else f"{acl.why} (goes on without)"
        table.append((process, acl.operation, acl.resource, acl.name, pattern, why))
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS) - 1)]
    for row in table:
        padded = (f"{cell:<{width}}" for cell, width in zip(row[:-1], widths, strict=True))
        typer.echo("  ".join((*padded, row[-1])))
