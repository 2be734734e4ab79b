"""Invariant 6: the state of a message is a join of its reports, and its results follow from nothing else."""

from collections.abc import Iterable
from functools import reduce

import orjson
from hypothesis import given
from hypothesis import strategies as st

from consumers.message import Change, MessageState, apply, decode, encode, forget_at, is_forgotten, merge
from consumers.results import expire, is_final, step
from ingest.contract.report import RejectedError, Report, read_report
from ingest.contract.result import Result, ResultReason, decode_result, encode_result
from tests.oracle import Raw, last_result, usable
from tests.strategies import any_text, deliveries, doubtful_reports, reports

SEEN_AT = 1_700_000_000_000
times = st.integers(0, 5).map(lambda after: SEEN_AT + 1000 * after)


def state_of(raws: Iterable[Raw]) -> MessageState:
    """The state after some reports, all with one timestamp."""
    state = None
    for raw in raws:
        state, _ = apply(state, read_report(raw), SEEN_AT, SEEN_AT)
    assert state is not None
    return state


states = deliveries().map(state_of)


def play(raws: Iterable[Raw]) -> list[Result]:
    """Every result of one message, its timeout at the end included."""
    state, results = None, []
    for raw in raws:
        taken = step(state, read_report(raw), SEEN_AT, SEEN_AT)
        state = taken.state
        results += [taken.result] if taken.result else []
    if state is not None and state.waiting:
        results.append(expire(state, SEEN_AT)[1])
    return results


def joined(result: Result) -> Raw:
    """What of a result neither order nor repeats may change."""
    apart = ("schemaVersion", "revision", "reason", "firstReceivedAt", "lastReceivedAt")
    return {name: value for name, value in as_json(result).items() if name not in apart}


def as_json(result: Result) -> Raw:
    """A result as a reader of the topic sees it."""
    value = orjson.loads(encode_result(result))
    assert isinstance(value, dict)
    return value


@given(states, states)
def test_the_join_is_commutative(one: MessageState, other: MessageState) -> None:
    """It does not matter which of two comes first."""
    assert merge(one, other) == merge(other, one)


@given(states, states, states)
def test_the_join_is_associative(one: MessageState, other: MessageState, third: MessageState) -> None:
    """It does not matter which two are joined first."""
    assert merge(merge(one, other), third) == merge(one, merge(other, third))


@given(states, states)
def test_the_join_is_idempotent(one: MessageState, other: MessageState) -> None:
    """Joining again what is in it already changes nothing."""
    assert merge(one, one) == one
    assert merge(merge(one, other), other) == merge(one, other)


@given(deliveries())
def test_applying_reports_is_joining_them(raws: list[Raw]) -> None:
    """The quick form does what the definition says."""
    assert state_of(raws) == reduce(merge, [state_of([raw]) for raw in raws])


@given(deliveries(), reports())
def test_a_report_that_is_in_the_state_never_changes_it(raws: list[Raw], late: Raw) -> None:
    """Dedupe: what was applied once is a repeat or superseded ever after, whatever came between."""
    state = state_of([*raws, late])

    for raw in raws:
        again, change = apply(state, read_report(raw), SEEN_AT + 9, SEEN_AT + 9)
        assert again is state
        assert change in (Change.REPEAT, Change.SUPERSEDED)


@given(states, reports(), times, times)
def test_a_report_is_applied_exactly_if_the_state_changes(
    state: MessageState, raw: Raw, record_ms: int, clock_ms: int
) -> None:
    """Nothing that changes the state is dropped, nothing that does not is written."""
    after, change = apply(state, read_report(raw), record_ms, clock_ms)

    differs = (after.segments, after.total_greatest, after.total_least) != (
        state.segments,
        state.total_greatest,
        state.total_least,
    )
    assert (change is Change.APPLIED) == differs
    assert after.seen_at == state.seen_at
    assert (after is state) == (not differs)


@given(deliveries(), st.randoms(use_true_random=False))
def test_any_order_and_any_repeats_end_in_the_result_of_the_oracle(raws: list[Raw], random: object) -> None:
    """The last result depends on which reports came, not on how."""
    expected = last_result(raws)

    assert joined(play(raws)[-1]) == expected
    assert joined(play(reversed(raws))[-1]) == expected
    assert joined(play(raws + raws)[-1]) == expected
    random.shuffle(raws)  # type: ignore[attr-defined]
    assert joined(play(raws)[-1]) == expected


@given(deliveries())
def test_every_result_is_the_oracles_of_the_reports_so_far(raws: list[Raw]) -> None:
    """Not only the last: each revision is true at its place, and none is missing between two that differ."""
    state, shown, revision = None, None, 0
    for count, raw in enumerate(raws, start=1):
        taken = step(state, read_report(raw), SEEN_AT, SEEN_AT)
        state = taken.state
        expected = last_result(raws[:count])
        assert expected is not None
        due = expected != shown if revision else expected["final"]
        assert (taken.result is not None) == due
        if taken.result:
            shown, revision = expected, revision + 1
            assert joined(taken.result) == expected
            assert taken.result.revision == revision == taken.state.revision
            assert taken.result.reason is (ResultReason.COMPLETE if revision == 1 else ResultReason.REVISED)


@given(deliveries(), st.integers(0, 8))
def test_a_timeout_changes_nothing_about_the_end(raws: list[Raw], after: int) -> None:
    """Whatever is emitted on the way, the last result is the same; a timeout comes once and first."""
    state = None
    results = []
    for count, raw in enumerate(raws):
        if count == after and state is not None and state.waiting:
            assert not is_final(state)
            state, result = expire(state, SEEN_AT)
            results.append(result)
        taken = step(state, read_report(raw), SEEN_AT, SEEN_AT)
        state = taken.state
        results += [taken.result] if taken.result else []
    if state is not None and state.waiting:
        results.append(expire(state, SEEN_AT)[1])

    assert joined(results[-1]) == last_result(raws)
    assert [result.revision for result in results] == list(range(1, len(results) + 1))
    assert all(result.reason is ResultReason.REVISED for result in results[1:])
    assert (results[0].reason is ResultReason.TIMEOUT) == (results[0].outcome == "incomplete")


@given(st.lists(st.tuples(reports(), times), min_size=1, max_size=8))
def test_the_times_span_the_records_that_changed_the_state(timed: list[tuple[Raw, int]]) -> None:
    """Repeats and superseded reports leave no trace in a result, their times included."""
    state, changed = None, []
    for raw, record_ms in timed:
        state, change = apply(state, read_report(raw), record_ms, SEEN_AT)
        changed += [record_ms] if change is Change.APPLIED else []

    assert state is not None
    assert (state.first_ms, state.last_ms) == (min(changed), max(changed))


@given(deliveries(), times, times, st.booleans())
def test_a_state_is_read_as_it_was_written(raws: list[Raw], seen_at: int, record_ms: int, done: bool) -> None:  # noqa: FBT001
    """Encoding loses nothing, before the first result and after it."""
    state = None
    for raw in raws:
        state = step(state, read_report(raw), record_ms, seen_at).state
    assert state is not None
    if done and state.waiting:
        state, _ = expire(state, seen_at + 1)

    read = decode(encode(state))

    assert read == state
    assert read.waiting == (state.message_id != "")
    end = forget_at(state, 10)
    assert (end is None) == state.waiting
    assert is_forgotten(read, 10, seen_at + 12) == (end is not None)


@given(deliveries())
def test_a_state_that_was_written_in_between_goes_on_alike(raws: list[Raw]) -> None:
    """A restart after every report gives the same results, byte for byte."""
    state, results = None, []
    for raw in raws:
        taken = step(decode(encode(state)) if state else None, read_report(raw), SEEN_AT, SEEN_AT)
        state = taken.state
        results += [taken.result] if taken.result else []
    if state is not None and state.waiting:
        results.append(expire(state, SEEN_AT)[1])

    assert [encode_result(result) for result in results] == [encode_result(result) for result in play(raws)]
    assert [decode_result(encode_result(result)) for result in results] == results


@given(any_text, any_text)
def test_comparing_texts_is_comparing_their_utf8_bytes(one: str, other: str) -> None:
    """The order of the contract is the order of Python's texts, for every text that JSON can carry."""
    assert (one < other) == (one.encode() < other.encode())


@given(doubtful_reports())
def test_the_oracle_and_the_reader_agree_on_what_is_usable(raw: object) -> None:
    """Two readings of contract.md section 5, made apart, give one verdict."""
    assert (read_or_none(raw) is not None) == usable(raw)


def read_or_none(raw: object) -> Report | None:
    """The report, if it is usable."""
    try:
        return read_report(raw)
    except RejectedError:
        return None
