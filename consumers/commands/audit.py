"""`python -m consumers audit`: topics and sink against the truth."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import orjson
from rich.console import Console
from rich.table import Table

from consumers.audit import TIMEOUT_SLACK_S, Audit, TruthError
from consumers.engine.kafka import Options
from consumers.engine.snapshot import read_topic
from consumers.rows import AwayError, StoredRow
from consumers.settings import AuditSettings
from ingest.contract.acls import auditing
from ingest.contract.result import decode_result
from ingest.runtime.errors import FoundError, ServiceAwayError, UsageError
from ingest.runtime.kafka import TopicAdmin, client_options

ROUND_PAUSE_S = 2.0
"""Between two looks while `--wait` lasts."""
FINDINGS_PRINTED = 50


class StoredRows(Protocol):
    """The part of a sink that an audit reads."""

    def stored(self) -> AsyncIterator[StoredRow]:
        """What the sink holds, once per message."""
        ...


OpenSink = Callable[[], AbstractAsyncContextManager[StoredRows]]


async def compare(
    settings: AuditSettings,
    truth: Path,
    *,
    sink: str | None,
    open_sink: OpenSink | None,
    wait_s: float,
    as_json: bool,
) -> None:
    """Compare and print.

    Args:
        settings: where the topics are.
        truth: file as contract.md section 10 has it.
        sink: name of the sink, None for the topics alone.
        open_sink: opens it for reading.
        wait_s: look again for so long while something is missing; what is repeated does not become right by waiting.
        as_json: print one JSON object in place of the table.

    Raises:
        FoundError: there is a finding.
        ServiceAwayError: no broker answered.
        UsageError: the truth file cannot be used, or a topic does not exist.
    """
    until = time.monotonic() + wait_s
    while True:
        done = await _once(settings, truth, sink, open_sink)
        if not done.findings or time.monotonic() >= until:
            break
        await asyncio.sleep(ROUND_PAUSE_S)
    if as_json:
        print(orjson.dumps(_summary(done)).decode())  # noqa: T201 - the output of the command
    else:
        _print(done, sink)
    if done.findings:
        raise FoundError(", ".join(f"{count} {problem}" for problem, count in done.found.items()))


async def _once(settings: AuditSettings, truth: Path, sink: str | None, open_sink: OpenSink | None) -> Audit:
    audit = _with_truth(truth)
    options = client_options(settings)
    async with TopicAdmin(options) as admin:
        await admin.demand(auditing(settings.acl_names()))
        existing = await admin.existing(describe=())
    names = (settings.reports_topic, settings.results_topic, settings.dead_letters_topic)
    for name in names:
        if name not in existing:
            raise UsageError(f"there is no topic {name}; `python -m ingest topics` makes it")
    reports, results, dead_letters = ((name, existing[name].partitions) for name in names)
    try:
        await _read_results(audit, options, *results)
        await _read_dead_letters(audit, options, *dead_letters)
        first_ms = await _read_reports(audit, options, *reports)
    except AwayError as error:
        raise ServiceAwayError(f"Kafka stopped handing out records: {error}") from None
    if open_sink is not None and sink is not None:
        async with open_sink() as rows:
            async for row in rows.stored():
                audit.add_row(row.message_id, row.revision, row.row, sink)
    audit.conclude(_waiting(audit, first_ms, settings.reassembly_timeout_s), sink=sink)
    return audit


async def _read_results(audit: Audit, options: Options, topic: str, partitions: int) -> None:
    async for batch in read_topic(options, topic, partitions):
        for record in batch:
            where = f"{record.partition}:{record.offset}"
            try:
                audit.add_result(decode_result(record.value or b""), where)
            except ValueError:
                audit.add_unreadable(where)


async def _read_dead_letters(audit: Audit, options: Options, topic: str, partitions: int) -> None:
    async for batch in read_topic(options, topic, partitions):
        for record in batch:
            stage = dict(record.headers).get("dlq-stage", b"").decode()
            audit.add_dead_letter(record.key, record.value, stage, f"{record.partition}:{record.offset}")


async def _read_reports(audit: Audit, options: Options, topic: str, partitions: int) -> dict[bytes | None, int]:
    """Timestamp of the first record of each message."""
    first_ms: dict[bytes | None, int] = {}
    async for batch in read_topic(options, topic, partitions):
        for record in batch:
            audit.add_record(record.key, dict(record.headers).get("ce_id") or record.value)
            first_ms.setdefault(record.key, record.timestamp)
    return first_ms


def _with_truth(truth: Path) -> Audit:
    audit = Audit()
    try:
        with truth.open("rb") as file:
            for line in file:
                audit.add_truth(line)
        audit.end_truth()
    except OSError as error:
        raise UsageError(f"the truth file {truth} cannot be read: {error.strerror}") from None
    except TruthError as error:
        raise UsageError(f"the truth file {truth} cannot be used: {error}") from None
    return audit


def _waiting(audit: Audit, first_ms: Mapping[bytes | None, int], timeout_s: int) -> dict[str, bool]:
    """For messages incomplete in the truth, whether their timeout can still be to come."""
    over_ms = (time.time() - timeout_s - TIMEOUT_SLACK_S) * 1000
    never = -1
    return {key: first_ms.get(key.encode(), never) > over_ms for key in audit.unanswered()}


def _summary(audit: Audit) -> dict[str, Any]:
    counts = audit.counts
    return {
        **{str(problem): count for problem, count in audit.found.items()},
        "messages": counts.messages,
        "records": counts.records,
        "repeats": counts.repeats,
        "results": counts.results,
        "outcomes": audit.outcomes(),
        "pending": counts.pending,
        "beyond": counts.beyond,
        "dead_letters": counts.dead_letters,
        "unusable": counts.unusable,
        "rows": counts.rows,
        "rows_beyond": counts.rows_beyond,
        "findings": [
            {"problem": f.problem, "smsMsgId": f.message_id, "where": f.where, "detail": f.detail}
            for f in audit.findings
        ],
    }


def _print(audit: Audit, sink: str | None) -> None:
    counts = audit.counts
    console = Console(highlight=False)
    table = Table(title="Audit", show_header=False)
    table.add_row("messages in the truth", f"{counts.messages:,}")
    table.add_row("report records", f"{counts.records:,}")
    table.add_row("  of them repeats", f"{counts.repeats:,}")
    table.add_row("results, all revisions", f"{counts.results:,}")
    for outcome, number in sorted(audit.outcomes().items()):
        table.add_row(f"  last one {outcome}", f"{number:,}")
    table.add_row("still waiting for their timeout", f"{counts.pending:,}")
    table.add_row("messages beyond the truth", f"{counts.beyond:,}")
    table.add_row("dead letters", f"{counts.dead_letters:,}")
    if sink is not None:
        table.add_row(f"rows in {sink}", f"{counts.rows:,}")
        table.add_row("  neither in truth nor topic", f"{counts.rows_beyond:,}")
    for problem, number in audit.found.items():
        table.add_row(str(problem), f"{number:,}")
    console.print(table)
    for finding in audit.findings[:FINDINGS_PRINTED]:
        console.print(f"{finding.problem}: {finding.message_id} ({finding.where}): {finding.detail}", soft_wrap=True)
    if len(audit.findings) > FINDINGS_PRINTED:
        console.print(f"... and {len(audit.findings) - FINDINGS_PRINTED} more")
