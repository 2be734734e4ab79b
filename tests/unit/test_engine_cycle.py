"""A cycle, decided: what follows from records and deadlines, whatever is done with it afterwards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from consumers.engine import cycle, deciding
from consumers.engine.cycle import Draft, InternalError, Rules, digest_of
from consumers.engine.deciding import Decision, Offer, decide
from consumers.entry import Cursor, Entry, LedgerDamagedError, LedgerFormatError, Position
from consumers.results import step
from ingest.contract.report import Report
from ingest.runtime.partitioner import partition_of
from tests.assembling import a_report
from tests.fakes.ledgers import MemoryLedger

NOW_MS = 1_790_000_000_000
RULES = Rules(reports_topic="reports", partition=0, partitions=1, timeout_ms=1000, late_window_ms=5000)


@dataclass(frozen=True)
class Given:
    """A record as the consumer hands it out."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = NOW_MS
    headers: Sequence[tuple[str, bytes]] = ()


def given(*reports: dict[str, Any], first: int = 0) -> list[Given]:
    """Records of usable reports at rising offsets."""
    return [
        Given(first + number, report["smsMsgId"].encode(), json.dumps(report).encode())
        for number, report in enumerate(reports)
    ]


def decided(
    ledger: MemoryLedger, records: Sequence[Given], *, clock_ms: int = NOW_MS, caught_up: bool = False, **offer: Any
) -> Decision:
    """Decide a cycle at a partition clock."""
    position = ledger.position or Position(0, 0, 0, Cursor())
    return decide(
        RULES,
        ledger,
        Offer(
            records=records,
            caught_up=caught_up,
            clock_ms=clock_ms,
            now_ms=clock_ms,
            cursor=position.cursor,
            **offer,
        ),
    )


def committed(
    ledger: MemoryLedger, records: Sequence[Given], *, clock_ms: int = NOW_MS, caught_up: bool = False
) -> list[dict[str, Any]]:
    """Decide a cycle, let the ledger have it, and return its results."""
    decision = decided(ledger, records, clock_ms=clock_ms, caught_up=caught_up)
    number = ledger.position.cycle if ledger.position else 0
    packed = ledger.encode(decision.entries, Position(number + 1, 0, clock_ms, decision.cursor))
    ledger.apply([(ledger.next_changelog_offset() + 1 + index, value) for index, value in enumerate(packed)])
    return results_of(decision.draft)


def results_of(draft: Draft) -> list[dict[str, Any]]:
    """The results of a draft, decoded."""
    return [json.loads(result.value or b"") for result in draft.results]


def reasons_of(draft: Draft) -> list[str]:
    """The reasons of the dead letters of a draft, by the offsets of their records."""
    letters = [dict(letter.headers) for letter in draft.dead_letters]
    return [letter["dlq-reason"].decode() for letter in sorted(letters, key=lambda letter: int(letter["dlq-offset"]))]


def test_batching_changes_no_result() -> None:
    """The same records give the same results byte for byte, one by one or all at once."""
    reports = [a_report(f"m{n % 7}", 1 + n % 3, 3, "ACCEPTD" if n % 4 else "DELIVRD") for n in range(60)]
    together, apart = MemoryLedger(), MemoryLedger()

    at_once = committed(together, given(*reports))
    one_by_one = [result for record in given(*reports) for result in committed(apart, [record])]

    assert at_once
    assert at_once == one_by_one


def test_a_repeat_writes_nothing() -> None:
    """A cycle of repeats has no result, no entry, and counts them."""
    ledger = MemoryLedger()
    committed(ledger, given(a_report("m"), a_report("n", 1, 2)))

    draft = decided(ledger, given(a_report("m"), a_report("n", 1, 2), a_report("m", status="UNKNOWN"))).draft

    assert not draft.writes
    assert draft.results == []
    assert draft.records == {"repeat": 2, "superseded": 1, "applied": 0}


def test_a_result_is_keyed_and_headed_as_the_contract_has_it() -> None:
    """Key `smsMsgId`, `ce_id` with the revision, `ce_source` the reports topic, time of production."""
    draft = decided(MemoryLedger(), given(a_report("m"))).draft

    result = draft.results[0]
    assert (result.key, result.timestamp_ms) == (b"m", NOW_MS)
    assert dict(result.headers)["ce_id"] == b"m/1"
    assert dict(result.headers)["ce_source"] == b"reports"


def test_entries_say_where_a_life_begins_and_whether_it_waits() -> None:
    """Only the first entry of a life is a first sight; a message with a result waits no more."""
    ledger = MemoryLedger()
    first = decided(ledger, given(a_report("m", 1, 2), a_report("n"))).entries
    committed(ledger, given(a_report("m", 1, 2), a_report("n")))

    second = decided(ledger, given(a_report("m", 2, 2)), clock_ms=NOW_MS + 5).entries

    def shown(entry: Entry) -> tuple[bytes, int, bool, bool]:
        return entry.digest, entry.seen_at_ms, entry.first_seen, entry.waiting

    assert [shown(entry) for entry in first] == [
        (digest_of(b"m"), NOW_MS, True, True),
        (digest_of(b"n"), NOW_MS, True, False),
    ]
    assert [shown(entry) for entry in second] == [(digest_of(b"m"), NOW_MS, False, False)]


def test_after_its_late_window_a_message_begins_anew() -> None:
    """At the last millisecond a report revises the result, one later it begins at revision 1."""
    ledger = MemoryLedger()
    committed(ledger, given(a_report("m", status="UNDELIV")))
    end = NOW_MS + RULES.late_window_ms

    in_time = decided(ledger, given(a_report("m")), clock_ms=end)
    late = decided(ledger, given(a_report("m")), clock_ms=end + 1)

    assert [(r["revision"], r["reason"]) for r in results_of(in_time.draft)] == [(2, "revised")]
    assert [(r["revision"], r["reason"]) for r in results_of(late.draft)] == [(1, "complete")]
    assert [entry.first_seen for entry in (*in_time.entries, *late.entries)] == [False, True]


def test_a_deadline_counts_only_when_caught_up() -> None:
    """Behind, nothing expires; caught up, it does from the deadline on, once."""
    ledger = MemoryLedger()
    committed(ledger, given(a_report("m", 1, 2)))
    due = NOW_MS + RULES.timeout_ms

    assert committed(ledger, [], clock_ms=due + 50, caught_up=False) == []
    assert committed(ledger, [], clock_ms=due - 1, caught_up=True) == []
    assert [result["reason"] for result in committed(ledger, [], clock_ms=due, caught_up=True)] == ["timeout"]
    assert committed(ledger, [], clock_ms=due + 100, caught_up=True) == []


def test_records_come_before_the_deadline_in_their_cycle() -> None:
    """A message that the cycle itself completes has no timeout, however late it is."""
    ledger = MemoryLedger()
    committed(ledger, given(a_report("m", 1, 2), a_report("n", 1, 3)))

    results = committed(ledger, given(a_report("m", 2, 2), a_report("n", 2, 3)), clock_ms=NOW_MS + 9999, caught_up=True)

    assert [(r["smsMsgId"], r["reason"], r["received"]) for r in results] == [("m", "complete", 2), ("n", "timeout", 2)]


def test_a_cycle_in_flight_hides_what_is_committed() -> None:
    """States that a cycle in flight has written count in place of the committed ones, for reports and deadlines."""
    ledger = MemoryLedger()
    committed(ledger, given(a_report("m", 1, 2)))
    flying = decided(ledger, given(a_report("m", 2, 2), a_report("n"))).draft

    after = decided(
        ledger,
        given(a_report("n"), a_report("m", 2, 2)),
        clock_ms=NOW_MS + 2 * RULES.timeout_ms,
        caught_up=True,
        overlay=flying.changed,
    ).draft

    assert not after.writes
    assert after.records == {"repeat": 2, "applied": 0}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"m", None, "not-json"),
        (None, None, "not-json"),
        (b"m", b"\xff", "not-json"),
        (b"m", b"[]", "not-an-object"),
        (b"m", b'{"status":"X"}', "missing-id"),
        (b"m", b'{"smsMsgId":1,"status":"X"}', "bad-id"),
        (b"x", b'{"smsMsgId":"m"}', "missing-status"),
        (b"x", b'{"smsMsgId":"m","status":"X","sequence":0}', "bad-sequence"),
        (b"x", b'{"smsMsgId":"m","status":"X"}', "key-mismatch"),
        (None, b'{"smsMsgId":"m","status":"X"}', "key-mismatch"),
    ],
)
def test_the_first_reason_that_applies_is_named(key: bytes | None, value: bytes | None, reason: str) -> None:
    """Reasons apply in the order of the contract."""
    draft = decided(MemoryLedger(), [Given(7, key, value)]).draft

    assert reasons_of(draft) == [reason]
    assert draft.dead_letters[0].value == value
    assert draft.records["unusable"] == 1
    assert dict(draft.dead_letters[0].headers)["dlq-offset"] == b"7"


def test_a_record_in_the_wrong_partition_is_put_aside() -> None:
    """Only the partition that the key belongs to counts; the others are not held up."""
    rules = Rules(reports_topic="reports", partition=1, partitions=3, timeout_ms=1, late_window_ms=1)
    reports = [a_report(f"m{number}") for number in range(30)]
    draft = Draft(rules, clock_ms=NOW_MS, now_ms=NOW_MS, lookup=lambda digests: [None] * len(digests))

    draft.take(given(*reports))

    home = [report["smsMsgId"] for report in reports if partition_of(report["smsMsgId"].encode(), 3) == 1]
    assert [result["smsMsgId"] for result in results_of(draft)] == home
    assert reasons_of(draft) == ["wrong-partition"] * (30 - len(home))


def test_a_record_that_our_code_fails_on_is_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes a dead letter `internal`; the others of the cycle give what they would give without it."""
    ledger, plain = MemoryLedger(), MemoryLedger()
    reports = [a_report(f"m{number % 5}", 1 + number % 2, 2) for number in range(20)]
    poison = a_report("poison")

    def failing(state: Any, report: Report, record_ms: int, clock_ms: int) -> Any:
        if report.message_id == "poison":
            raise ZeroDivisionError
        return step(state, report, record_ms, clock_ms)

    monkeypatch.setattr(cycle, "step", failing)
    decision = decided(ledger, given(*reports[:9], poison, *reports[9:]))

    assert reasons_of(decision.draft) == ["internal"]
    assert results_of(decision.draft) == results_of(decided(plain, given(*reports)).draft)
    assert {entry.digest for entry in decision.entries} == {digest_of(f"m{number}".encode()) for number in range(5)}
    assert decision.taken == 21


@pytest.mark.parametrize(
    "headers", [[("dlq-attempt", b"9" * 5000)], [(None, b"no name")]], ids=["absurd attempt", "no header name"]
)
def test_headers_of_an_unusable_record_never_stop_a_partition(headers: Any) -> None:
    """Whatever stands in the headers of a record that becomes a dead letter, it becomes one and the others pass."""
    poison = Given(1, b"k", b"no json", headers=headers)

    decision = decided(MemoryLedger(), [*given(a_report("a")), poison, *given(a_report("b"), first=2)])

    assert [result["smsMsgId"] for result in results_of(decision.draft)] == ["a", "b"]
    assert [letter.value for letter in decision.draft.dead_letters] == [b"no json"]
    assert decision.draft.records == {"applied": 2, "unusable": 1}


def test_a_timeout_that_our_code_fails_on_is_no_record_to_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised: there is nothing that a dead letter could hold."""
    ledger = MemoryLedger()
    committed(ledger, given(a_report("m", 1, 2)))
    monkeypatch.setattr(cycle, "expire", lambda *_: 1 / 0)

    with pytest.raises(InternalError):
        decided(ledger, [], clock_ms=NOW_MS + 9999, caught_up=True)


@pytest.mark.parametrize(("payload", "error"), [(b"\xf0newer", LedgerFormatError), (b"\x01\xc1", LedgerDamagedError)])
def test_what_cannot_be_remembered_is_not_the_records_fault(payload: bytes, error: type[Exception]) -> None:
    """A damaged or newer state is raised, and makes no dead letter of whatever report asked for it."""
    ledger = MemoryLedger()
    entry = Entry(digest_of(b"m"), NOW_MS, first_seen=True, waiting=True, payload=payload)
    ledger.apply([(0, ledger.encode([entry], Position(1, 0, NOW_MS, Cursor()))[0])])

    with pytest.raises(error):
        decided(ledger, given(a_report("m")))


def test_a_large_cycle_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its bound in bytes a cycle takes no further records, and looks at no deadline."""
    monkeypatch.setattr(deciding, "CHUNK_RECORDS", 10)
    monkeypatch.setattr(deciding, "CYCLE_BYTES_MAX", 3000)
    ledger = MemoryLedger()

    decision = decided(ledger, given(*(a_report(f"m{number}") for number in range(100))), caught_up=True)

    assert decision.taken == 10
    assert len(decision.draft.results) == 10
    assert decision.draft.bytes > 3000
    assert decision.cursor == Cursor()


def test_the_record_that_kafka_refused_is_put_aside_unapplied() -> None:
    """What follows from it is not written: the dead letter stands in its place."""
    decision = decided(MemoryLedger(), given(a_report("m"), first=41), refused_offset=41)

    assert reasons_of(decision.draft) == ["refused-by-kafka"]
    assert decision.entries == []
