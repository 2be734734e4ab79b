"""The rights that are written down are those that the processes ask for, and the commands give exactly these."""

import json
import re
from pathlib import Path

import pytest

from ingest.commands.acls import acls_of, commands, print_acls
from ingest.contract.acls import PROCESSES, Operation, Resource
from ingest.runtime.errors import UsageError
from ingest.settings import AclsSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "acls.md"
ROW = re.compile(r"^\| `([a-z-]+)` \| (\w+) \| ([a-z-]+) `([^`]+)`( \(prefixed\))? \|", re.MULTILINE)


def test_the_page_for_operators_is_what_the_processes_need() -> None:
    """Row by row, with the names that the settings have by default."""
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))

    assert rows == [
        (process, acl.operation, acl.resource, acl.name, " (prefixed)" if acl.prefixed else "")
        for process in PROCESSES
        for acl in acls_of(AclsSettings(), process)
    ]


def test_names_come_from_the_settings() -> None:
    """Topics, groups and what transactional ids begin with."""
    settings = AclsSettings(reports_topic="r", results_topic="s", dead_letters_topic="d", group_id="g")

    names = {(acl.resource, acl.name) for acl in acls_of(settings, "assemble")}
    sink = [acl.name for acl in acls_of(settings, "sink-jsonl") if acl.resource is Resource.GROUP]

    assert names == {
        *((Resource.TOPIC, name) for name in ("r", "s", "d", "g.r.changelog")),
        (Resource.GROUP, "g"),
        (Resource.TRANSACTIONAL_ID, "g.r."),
    }
    assert sink == ["dlrflow-sink-jsonl"]


def test_commands_quote_what_a_shell_would_read() -> None:
    """A principal may have blanks in it, as those of certificates do."""
    lines = list(commands(acls_of(AclsSettings(), "assemble"), "User:CN=me, O=us"))

    assert all("--allow-principal 'User:CN=me, O=us' --operation " in line for line in lines)
    assert [line for line in lines if line.endswith("--resource-pattern-type prefixed")] == [lines[-1]]
    assert "--transactional-id dlrflow-assembler.sms.status-reports. " in lines[-1]


def test_no_process_may_delete_or_change_anything() -> None:
    """Of what Kafka can allow, five operations are ever asked for, and Create by one process alone."""
    creating = {
        process
        for process in PROCESSES
        for acl in acls_of(AclsSettings(), process)
        if acl.operation is Operation.CREATE
    }

    assert creating == {"topics"}


def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """For tools that manage rights."""
    print_acls(AclsSettings(), "dead-letters", principal=None, as_json=True)

    (right,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (right["process"], right["operation"], right["name"]) == ("dead-letters", "Read", "sms.dead-letters")


@pytest.mark.parametrize(
    ("process", "principal", "as_json", "words"),
    [
        ("sink", None, False, "'sink' is no process that uses Kafka; choose one of receive, "),
        (None, "User:me", False, "--principal needs the process"),
        ("audit", "User:me", True, "exclude each other"),
    ],
)
def test_mistakes_are_named(*, process: str | None, principal: str | None, as_json: bool, words: str) -> None:
    """One line each."""
    with pytest.raises(UsageError, match=words):
        print_acls(AclsSettings(), process, principal=principal, as_json=as_json)
