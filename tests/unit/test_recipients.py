"""Telephone numbers in results, hidden behind a keyed hash."""

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

import pytest

from consumers.engine.cycle import Draft, Rules
from consumers.message import apply, decode, encode
from consumers.recipients import PREFIX, Recipients
from consumers.settings import AssembleSettings
from ingest.contract.report import FIELD_MAX, read_report
from ingest.runtime.errors import UsageError
from tests.unit.test_settings import from_environment, mistake

NOW_MS = 1_790_000_000_000
NUMBER = "+8613500000001"
KEY = b"k" * 32
PLAIN = Rules(reports_topic="reports", partition=0, partitions=1, timeout_ms=1000, late_window_ms=5000)
HIDING = Rules(
    reports_topic="reports", partition=0, partitions=1, timeout_ms=1000, late_window_ms=5000, recipients=Recipients(KEY)
)
HASH = PREFIX + hmac.new(KEY, NUMBER.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Given:
    """A record of one report."""

    value: bytes
    key: bytes = b"m1"
    offset: int = 0
    timestamp: int = NOW_MS
    headers: tuple[tuple[str, bytes], ...] = ()


def a_report(**fields: Any) -> dict[str, Any]:
    """A report of a message of two parts, with a number."""
    return {"smsMsgId": "m1", "status": "DELIVRD", "total": 2, "to": NUMBER, **fields}


def a_draft(rules: Rules, *reports: dict[str, Any], remembered: bytes | None = None) -> Draft:
    """A cycle with these reports, on top of what is remembered."""
    draft = Draft(rules, clock_ms=NOW_MS, now_ms=NOW_MS, lookup=lambda digests: [remembered] * len(digests))
    draft.take([Given(json.dumps(report).encode()) for report in reports])
    return draft


def result_of(draft: Draft) -> dict[str, Any]:
    """The only result of a cycle."""
    (result,) = draft.results
    value: dict[str, Any] = json.loads(result.value or b"")
    return value


def test_a_result_holds_the_hash_in_place_of_the_number() -> None:
    """It is HMAC-SHA256 of the number as received, and says so."""
    draft = a_draft(HIDING, a_report(sequence=1), a_report(sequence=2))

    assert result_of(draft)["to"] == HASH


def test_memory_never_holds_the_number() -> None:
    """Nor does the changelog, which is written of the same entries."""
    draft = a_draft(HIDING, a_report(sequence=1))

    (entry,) = draft.entries()
    assert NUMBER.encode() not in entry.payload
    assert decode(entry.payload).segments[0].to == HASH


def test_without_a_key_results_are_as_they_always_were() -> None:
    """The number, untouched."""
    assert result_of(a_draft(PLAIN, a_report(sequence=1), a_report(sequence=2)))["to"] == NUMBER


def test_what_is_remembered_from_before_the_key_is_hashed_where_it_is_read() -> None:
    """A message that waited when the key was set shows no number, and its repeats are still repeats."""
    state, _ = apply(None, read_report(a_report(sequence=1)), NOW_MS, NOW_MS)

    draft = a_draft(HIDING, a_report(sequence=1), a_report(sequence=2), remembered=encode(state))

    assert result_of(draft)["to"] == HASH
    assert draft.records["repeat"] == 1


def test_a_timeout_shows_no_number_from_before_the_key() -> None:
    """It has no report that could bring the hash."""
    state, _ = apply(None, read_report(a_report(sequence=1)), NOW_MS - 5000, NOW_MS - 5000)
    draft = a_draft(HIDING)

    draft.expire([(b"digest", encode(state))])

    assert result_of(draft)["to"] == HASH


def test_hashing_twice_is_hashing_once() -> None:
    """And nothing that a sender can state is taken for a hash."""
    recipients = Recipients(KEY)

    assert recipients.hidden(HASH) == HASH
    assert recipients.hidden("") == ""
    assert len(HASH) > FIELD_MAX
    assert recipients.hidden(HASH[:FIELD_MAX]) != HASH[:FIELD_MAX]


def test_another_key_gives_another_hash() -> None:
    """Otherwise it would protect nothing."""
    assert Recipients(b"l" * 32).hidden(NUMBER) != HASH


def test_a_key_that_can_be_guessed_is_refused() -> None:
    """The line about it does not say it."""
    said = mistake(AssembleSettings, {"DLR_RECIPIENT_KEY": "tooshort"})

    assert "DLR_RECIPIENT_KEY" in said
    assert "32 characters" in said
    assert "tooshort" not in said
    assert from_environment(AssembleSettings, DLR_RECIPIENT_KEY="x" * 32).settings.recipient_key is not None
    with pytest.raises(UsageError):
        from_environment(AssembleSettings, DLR_RECIPIENT_KEY="x" * 31)
