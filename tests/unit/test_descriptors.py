"""How many connections the machine allows for."""

import resource

import pytest

from ingest.runtime.descriptors import OWN, within_limit
from ingest.runtime.errors import UsageError


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """The limit of this process, made up."""
    made = {"now": (256, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: made["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: made.update(now=limit))
    return made


def test_the_limit_is_raised_as_far_as_it_may_be(limits: dict[str, tuple[int, int]]) -> None:
    """Nobody has to say `ulimit -n` where the machine allows for it."""
    assert within_limit(2000) == 2000
    assert limits["now"] == (4096, 4096)


@pytest.mark.usefixtures("limits")
def test_fewer_are_taken_where_the_machine_allows_for_no_more() -> None:
    """Better than to fail at accept, when it is too late to say so."""
    assert within_limit(10_000) == 4096 - OWN


def test_room_for_none_is_an_error(limits: dict[str, tuple[int, int]]) -> None:
    """It names what to raise."""
    limits["now"] = (OWN, OWN)

    with pytest.raises(UsageError, match="ulimit -n"):
        within_limit(10)


def test_no_limit_is_no_bound(limits: dict[str, tuple[int, int]]) -> None:
    """RLIM_INFINITY is a negative number."""
    limits["now"] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    assert within_limit(1_000_000) == 1_000_000
