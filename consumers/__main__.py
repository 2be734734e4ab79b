"""`python -m consumers`: joins reports into results and writes them to their destination (contract.md section 1).

The arguments and the environment are read here and nowhere else, and here the parts are joined. Heavy modules are
imported inside the commands, so that help and mistakes are quick.
"""

import os
import sys

from consumers.settings import ConsumersSettings
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
