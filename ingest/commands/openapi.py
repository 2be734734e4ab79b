"""The command `openapi`: prints the description of the callback port."""

import orjson

from ingest.receiver.openapi import Described, describe
from ingest.settings import OpenApiSettings


def print_description(settings: OpenApiSettings) -> None:
    """Print it as indented JSON, with the configured paths and sizes."""
    description = describe(
        Described(
            batch_path=settings.batch_path,
            single_path=settings.single_path,
            body_max_bytes=settings.body_max_bytes,
            reports_max=settings.reports_max,
        )
    )
    print(orjson.dumps(description, option=orjson.OPT_INDENT_2).decode())  # noqa: T201 - the output of the command
