"""A state folder that cannot be used ends `assemble` before it takes partitions from others."""

from pathlib import Path

import pytest

from consumers.commands.ledgers import local_ledgers
from consumers.settings import AssembleSettings
from ingest.runtime.errors import UsageError


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_state_folder_that_is_none_is_a_wrong_setting(tmp_path: Path, name: str) -> None:
    """One line that names it."""
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match=f"the state folder .*{name} cannot be used"):
        local_ledgers(AssembleSettings(state_dir=tmp_path / name))


def test_a_missing_state_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """It holds phone numbers."""
    local_ledgers(AssembleSettings(state_dir=tmp_path / "new" / "state"))

    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "new" / "state").iterdir()) == []
