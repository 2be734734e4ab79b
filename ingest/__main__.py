"""`python -m ingest`: receives the platform's pushes and publishes each report (contract.md section 1).

The arguments and the environment are read here and nowhere else, and here the parts are joined. Heavy modules are
imported inside the commands, so that help and mistakes are quick.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ingest.contract.push import Route
from ingest.contract.settings import PREFIX, LogSettings, all_fields
from ingest.runtime.cli import Cli, print_effective
from ingest.runtime.settings import Loaded, Surface
from ingest.settings import (
    AclsSettings,
    DrainSettings,
    IngestSettings,
    OpenApiSettings,
    ReceiveSettings,
    SimulateSettings,
    TopicsSettings,
    VerifySettings,
)

SURFACE = Surface(prefix=PREFIX, fields=all_fields())


def _share(meaning: str) -> Any:
    return typer.Option(min=0, max=1, help=f"share of {meaning}")


def _prepare(settings: LogSettings) -> None:
    from ingest.runtime import logs  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level)


cli = Cli(
    "python -m ingest", "Status reports of an SMS platform, from HTTP to Kafka.", surface=SURFACE, prepare=_prepare
)


@cli.command(ReceiveSettings)
def receive(loaded: Loaded[ReceiveSettings]) -> None:
    """Take pushes over HTTP and publish each report, until stopped."""
    from ingest.commands.receive import receive as serve  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    run(serve(loaded.settings, os.environ))


@cli.command(DrainSettings)
def drain(loaded: Loaded[DrainSettings]) -> None:
    """Publish what spool folders nobody holds still contain; status 0 only when none is left."""
    from ingest.commands.drain import drain_spool  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    run(drain_spool(loaded.settings))


@cli.command(TopicsSettings)
def topics(
    loaded: Loaded[TopicsSettings],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="only report, create nothing; status 1 if any differs")
    ] = False,
) -> None:
    """Create the missing topics and report those that differ from what is needed."""
    from ingest.commands.topics import manage_topics  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    run(manage_topics(loaded.settings, check=check))


@cli.command(AclsSettings)
def acls(
    loaded: Loaded[AclsSettings],
    process: Annotated[str | None, typer.Argument(help="one process; else all, as a table")] = None,
    *,
    principal: Annotated[
        str | None, typer.Option(metavar="User:NAME", help="print the commands that give this principal its rights")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object per right")] = False,
) -> None:
    """Print what each process must be allowed to do on Kafka; with --principal, as commands for kafka-acls."""
    from ingest.commands.acls import print_acls  # noqa: PLC0415

    print_acls(loaded.settings, process, principal=principal, as_json=as_json)


@cli.command(OpenApiSettings)
def openapi(loaded: Loaded[OpenApiSettings]) -> None:
    """Print the OpenAPI description of the callback port."""
    from ingest.commands.openapi import print_description  # noqa: PLC0415

    print_description(loaded.settings)


@cli.command(SimulateSettings)
def simulate(
    loaded: Loaded[SimulateSettings],
    *,
    url: Annotated[str, typer.Option(help="scheme, host and port of the receiver")] = "http://127.0.0.1:8080",
    messages: Annotated[int, typer.Option(min=0, help="number of different messages")] = 10_000,
    rate: Annotated[float, typer.Option(min=0, help="reports per second; 0: as fast as possible")] = 0,
    seed: Annotated[int, typer.Option(help="the same seed gives the same traffic")] = 1,
    long_share: Annotated[float, _share("messages with 2 to 8 segments")] = 0.3,
    duplicate_share: Annotated[float, _share("reports that are sent twice")] = 0.02,
    invalid_share: Annotated[float, _share("unusable elements beside the reports")] = 0.001,
    incomplete_share: Annotated[float, _share("messages of which something final never comes")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="reports come up to 20,000 reports late")] = False,
    sign: Annotated[str | None, typer.Option(metavar="AK:SK", help="sign with this key pair")] = None,
    ca_file: Annotated[Path | None, typer.Option(help="PEM of whom to trust over https; else the machine's")] = None,
    connections: Annotated[int, typer.Option(min=1, max=10_000, help="connections at once")] = 16,
    truth: Annotated[Path | None, typer.Option(help="file to write the truth to")] = None,
) -> None:
    """Play the SMS platform: push reports with a known truth."""
    from ingest.runtime.supervise import run  # noqa: PLC0415
    from ingest.simulator.plan import PlanOptions  # noqa: PLC0415
    from ingest.simulator.run import play_platform  # noqa: PLC0415
    from ingest.simulator.traffic import Target  # noqa: PLC0415

    options = PlanOptions(
        messages=messages,
        seed=seed,
        long_share=long_share,
        duplicate_share=duplicate_share,
        invalid_share=invalid_share,
        incomplete_share=incomplete_share,
        shuffle=shuffle,
    )
    paths = {Route.BATCH: loaded.settings.batch_path, Route.SINGLE: loaded.settings.single_path}
    target = Target.parse(url, paths=paths, connections=connections, rate=rate, sign=sign, ca_file=ca_file)
    run(play_platform(options, target, truth))


@cli.command(VerifySettings)
def verify(
    loaded: Loaded[VerifySettings],
    *,
    head: Annotated[Path, typer.Option(help="file with the head as received, or with lines 'name: value'")],
    body: Annotated[Path | None, typer.Option(help="file with the body [default: what follows the head]")] = None,
    method: Annotated[
        str | None, typer.Option(help="of the request [default: as its first line says, or POST]")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="path and query [default: as the first line says, or DLR_BATCH_PATH]")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="when it is judged, such as 20241212T070653Z [default: now]")
    ] = None,
) -> None:
    """Explain whether the signature of a captured request is right; status 1 if it is not."""
    from ingest.commands.captured import moment_of, read_capture  # noqa: PLC0415
    from ingest.commands.verify import explain  # noqa: PLC0415

    paths = (loaded.settings.batch_path, loaded.settings.single_path)
    capture = read_capture(head, body, method=method, target=target, default_target=paths[0])
    explain(capture, loaded.settings, now=moment_of(at), paths=paths)


@cli.command(IngestSettings)
def config(loaded: Loaded[IngestSettings]) -> None:
    """Print the effective settings and where each came from; secrets are hidden."""
    from ingest.runtime.logs import effective_format  # noqa: PLC0415

    print_effective(SURFACE, loaded, {"log_format": effective_format(None)})


def main() -> int:
    """Run the command and return its exit status."""
    return cli.run(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
