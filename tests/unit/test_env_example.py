"""`.env.example` tells the truth about the settings."""

import itertools
import re
from pathlib import Path

from ingest.contract.settings import PREFIX, all_fields
from ingest.runtime.settings import Surface, load, rendered
from ingest.settings import ReceiveSettings

SURFACE = Surface(prefix=PREFIX, fields=all_fields())
LINES = (Path(__file__).parents[2] / ".env.example").read_text(encoding="utf-8").splitlines()
SETTING = re.compile(r"#(DLR_[A-Z_]+)=(.*)")
READY = re.compile(r"# (DLR_[A-Z_]+)=(.+)")


def test_the_example_lists_every_setting_with_its_default() -> None:
    """Nothing is missing, unknown, repeated or said wrongly, and the order is that of the help."""
    listed = [match.groups() for line in LINES if (match := SETTING.fullmatch(line))]

    assert listed == [(SURFACE.name(field), rendered(info, info.default)) for field, info in all_fields().items()]


def test_the_example_explains_every_setting() -> None:
    """A comment stands above each."""
    for before, line in itertools.pairwise(LINES):
        if SETTING.fullmatch(line):
            assert before.startswith("# "), line


def test_copying_the_example_changes_nothing() -> None:
    """As it stands, no line of it sets anything."""
    assert not [line for line in LINES if line and not line.startswith("#")]


def test_the_documented_networks_are_ready() -> None:
    """Taking the comment sign away admits the networks that the platform documents, and only those."""
    ready = {match[1]: match[2] for line in LINES if (match := READY.fullmatch(line))}

    settings = load(ReceiveSettings, SURFACE, environ=ready).settings

    assert list(map(str, settings.allowed_networks)) == [
        "117.78.29.0/24",
        "124.70.27.0/24",
        "124.71.67.0/24",
        "123.60.96.0/24",
        "119.8.109.0/24",
    ]
