"""The list of guards describes the product as it is: it cannot rot unnoticed."""

import ast
import tomllib
from pathlib import Path

import pytest

from tests.guards.__main__ import PATIENCE
from tests.guards.guard import LIST, Guard, Removal

ROOT = Path(__file__).parents[2]
GUARDS = list(Guard.load_all().values())


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_stands_once_in_the_product_and_can_be_taken_out(guard: Guard) -> None:
    """What is left without it is Python still, and something else than before."""
    changed = guard.taken_out(ROOT)

    assert changed
    for path, source in changed.items():
        assert source != (ROOT / path).read_text()
        ast.parse(source)


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_every_test_that_a_guard_names_exists(guard: Guard) -> None:
    """By file and function; what stands in brackets is pytest's, and a run says whether it knows it."""
    assert guard.tests
    for test in guard.tests:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name.partition("[")[0] in functions


def test_guards_have_names_of_their_own() -> None:
    """So that one can be asked for, and none hides another."""
    assert len(GUARDS) == len(tomllib.loads(LIST.read_text())["guard"])


def test_the_patience_of_the_tests_can_be_shortened() -> None:
    """Without its guard a test often waits for what never comes."""
    assert PATIENCE.new in PATIENCE.of((ROOT / PATIENCE.file).read_text())


@pytest.mark.parametrize("source", ["", "aa"])
def test_a_text_that_does_not_stand_there_once_is_refused(source: str) -> None:
    """Neither none nor two: a removal that removes nothing proves nothing."""
    with pytest.raises(ValueError, match="times"):
        Removal(file="any", old="a", new="b").of(source)
