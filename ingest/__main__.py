"""`python -m ingest`: receives the platform's pushes and publishes each report (contract.md section 1).

The arguments and the environment are read here and nowhere else, and here the parts are joined. Heavy modules are
imported inside the commands, so that help and mistakes are quick.
"""

import os
import sys
from typing import Annotated

import typer

from ingest.contract.settings import PREFIX, LogSettings, all_fields
from ingest.runtime.cli import Cli, print_effective
from ingest.runtime.settings import Loaded, Surface
from ingest.settings import IngestSettings, TopicsSettings

SURFACE = Surface(prefix=PREFIX, fields=all_fields())


def _prepare(settings: LogSettings) -> None:
    from ingest.runtime import logs  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level)


cli = Cli(
    "python -m ingest", "Status reports of an SMS platform, from HTTP to Kafka.", surface=SURFACE, prepare=_prepare
)


@cli.command(TopicsSettings)
def topics(
    loaded: Loaded[TopicsSettings],
    *,
    check: Annotated[
        bool, typer.Option("--check", help="only report, create nothing; status 1 if any differs")
    ] = False,
) -> None:
    """Create the missing topics and report those that differ from what is needed."""
    from ingest.commands import manage_topics  # noqa: PLC0415
    from ingest.runtime.supervise import run  # noqa: PLC0415

    run(manage_topics(loaded.settings, check=check))


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
