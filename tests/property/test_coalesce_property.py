"""Coalescing a batch is exactly writing its results one by one."""

from hypothesis import given
from hypothesis import strategies as st

from consumers.rows import Arrival
from consumers.sinks.base import coalesce, gives_way
from ingest.contract.result import Outcome, Result, ResultReason

results = st.builds(
    lambda message_id, revision, first: Result(
        schema_version=1,
        sms_msg_id=message_id,
        revision=revision,
        outcome=Outcome.FAILED,
        final=True,
        total=1,
        received=1,
        missing=[],
        segments=[],
        reason=ResultReason.COMPLETE,
        first_received_at=f"2026-11-23T10:00:0{first}.000Z",
        last_received_at="2026-11-23T10:00:09.000Z",
    ),
    st.sampled_from("ab"),
    st.integers(1, 4),
    st.integers(0, 4),
)
batches = st.lists(results, max_size=8)


def arrived(batch: list[Result]) -> list[Arrival]:
    """A batch as it is read."""
    return [Arrival(0, offset, result) for offset, result in enumerate(batch)]


def written(table: dict[str, Result], rows: list[Result]) -> dict[str, Result]:
    """A table after some upserts, one by one."""
    table = dict(table)
    for row in rows:
        kept = table.get(row.sms_msg_id)
        if kept is None or gives_way(kept, row):
            table[row.sms_msg_id] = row
    return table


@given(batches, batches)
def test_a_coalesced_batch_ends_in_the_same_rows(before: list[Result], batch: list[Result]) -> None:
    """Whatever the table held, repeats and lives of a message included."""
    table = written({}, before)

    upserts = coalesce(arrived(batch))

    assert written(table, [row for each in upserts for row in each]) == written(table, batch)
    for each in upserts:
        ids = [row.sms_msg_id for row in each]
        assert ids == sorted(set(ids))


@given(batches, st.data())
def test_what_was_written_once_may_come_again_from_anywhere(batch: list[Result], data: st.DataObject) -> None:
    """A crash repeats a tail of what was written: no row changes."""
    table = written({}, batch)

    tail = batch[data.draw(st.integers(0, len(batch))) :]

    assert written(table, tail) == table


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(0, 4))
def test_one_life_is_one_upsert_of_its_highest_revision(revisions: list[int], first: int) -> None:
    """The usual batch costs one statement."""
    batch = [
        Result(
            schema_version=1,
            sms_msg_id="m",
            revision=revision,
            outcome=Outcome.FAILED,
            final=True,
            total=1,
            received=1,
            missing=[],
            segments=[],
            reason=ResultReason.REVISED,
            first_received_at=f"2026-11-23T10:00:0{first}.000Z",
            last_received_at="2026-11-23T10:00:09.000Z",
        )
        for revision in revisions
    ]

    assert [[row.revision for row in each] for each in coalesce(arrived(batch))] == [[max(revisions)]]
