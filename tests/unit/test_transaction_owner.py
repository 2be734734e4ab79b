"""One module owns the transactions: nothing else of the consumers can begin, send into, commit or abort one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import consumers

ROOT = Path(consumers.__file__).parent
OWNER = ROOT / "engine" / "transaction.py"
FACTORY = ROOT / "engine" / "kafka.py"
COMPOSITION = ROOT / "commands" / "assemble.py"

CALLS = {
    "begin_transaction",
    "send_batch",
    "send_offsets_to_transaction",
    "commit_transaction",
    "abort_transaction",
    "create_batch",
    "take_in",
}
"""What a producer offers for transactions, and the batches that only they take: single records are sent without."""

CONTEXT = "transaction"
"""The producer's own context, which commits whatever became of the batches. A database has one of that name, too."""

DATABASES = {ROOT / "sinks" / "postgres.py"}
MAKER = "transactional_producer"
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != OWNER)


def _named(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every attribute, name, imported name, keyword and text that could lead to one of them, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.Constant(value=str(name)):
                yield name, node.lineno
            case ast.keyword(arg=str(name), value=value):
                yield name, value.lineno
            case ast.ImportFrom(names=names):
                yield from ((alias.name, node.lineno) for alias in names)


def _uses(path: Path, names: set[str]) -> list[str]:
    found = _named(ast.parse(path.read_text()))
    return [f"{path.relative_to(ROOT)}:{line}: {name}" for name, line in found if name in names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_else_touches_a_transaction(path: Path) -> None:
    """Not by a call, and not by a name in a text either."""
    assert _uses(path, CALLS if path in DATABASES else CALLS | {CONTEXT}) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_transactional_producers_come_from_one_place(path: Path) -> None:
    """The factory alone names a transactional id to a client, and only the composition passes the factory on."""
    allowed = {FACTORY: {"transactional_id", MAKER}, COMPOSITION: {"transactional_id", MAKER}}

    assert _uses(path, {"transactional_id", MAKER} - allowed.get(path, set())) == []


def test_the_factory_is_passed_to_the_owner_only() -> None:
    """Where the parts are put together it stands once: as the first argument of `Transactions`."""
    calls = [node for node in ast.walk(ast.parse(COMPOSITION.read_text())) if isinstance(node, ast.Call)]
    owners = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Transactions"]
    uses = [
        node for node in ast.walk(ast.parse(COMPOSITION.read_text())) if isinstance(node, ast.Name) and node.id == MAKER
    ]

    assert len(owners) == len(uses) == 1
    assert MAKER in {node.id for node in ast.walk(owners[0].args[0]) if isinstance(node, ast.Name)}


def test_the_check_sees_what_it_is_about() -> None:
    """The owner itself does all of it."""
    seen = {name for name, _ in _named(ast.parse(OWNER.read_text()))}

    assert seen >= CALLS
