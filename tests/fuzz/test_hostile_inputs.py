"""The receiver under as much hostile input as each run of the suite can bear; `python -m tests.fuzz` is longer."""

from dataclasses import replace
from pathlib import Path

import pytest

from ingest.contract.push import Push, Route
from ingest.contract.report import Reason
from tests.fuzz.framing import Case, Finish
from tests.fuzz.judge import NOT_HTTP, SUCCESS, judge, judge_push
from tests.fuzz.rounds import Tally, run_round
from tests.fuzz.run import Load, growth_kib, play_bodies, play_signed, run
from tests.fuzz.sender import Answer, Heard
from tests.fuzz.slow_http import read_wire

LOAD = Load(connections=3_000, bodies=15_000, signed=2_000)
BODY = b'{"statusReportList":[]}'
REQUEST = b"POST /batchReport HTTP/1.1\r\nHost: a\r\nContent-Length: 23\r\n\r\n" + BODY
PUSH = Push(1, Route.BATCH, 0, BODY)
CASE = Case(1, "plain", REQUEST, (), Finish.END)
HEARD = Heard([Answer(200, b"", SUCCESS, closes=False)], b"", reset=False, closed=True, sender="127.0.0.1")


async def test_twenty_thousand_hostile_inputs_find_nothing(tmp_path: Path) -> None:
    """No crash, no leak, every answer in the contract, and everything answered as kept stands on disk, once."""
    figures = await run(LOAD, seed=5, folder=tmp_path / "spool")

    assert figures["findings"] == []
    assert figures["inputs"] == 20_000
    assert set(figures["answers"]) >= {"200", "400", "404", "405", "413", "415"}
    assert figures["different_answer_bodies"] < 50


async def test_a_push_that_is_answered_but_not_kept_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The books are not for show: each tenth push is dropped behind the receiver's back."""
    from ingest.spool.disk import DiskSpool  # noqa: PLC0415

    keep = DiskSpool.append
    dropped = []

    async def append(self: DiskSpool, push: Push) -> None:
        if len(push.body) % 10:
            await keep(self, push)
        else:
            dropped.append(push)

    monkeypatch.setattr(DiskSpool, "append", append)
    tally = Tally()
    await run_round(tally, tmp_path / "spool", seed=5, numbers=range(100))

    assert dropped
    assert any("the disk gives back" in finding.what for finding in tally.findings)


def test_sound_books_are_not_found() -> None:
    """One request, answered, kept, closed."""
    assert judge(CASE, read_wire(REQUEST), HEARD, [PUSH]) == []
    assert judge_push(PUSH) == []


@pytest.mark.parametrize(
    ("heard", "kept"),
    [
        pytest.param(HEARD, [], id="answered and not kept"),
        pytest.param(HEARD, [PUSH, PUSH], id="kept twice"),
        pytest.param(HEARD, [Push(1, Route.BATCH, 0, b"{}")], id="kept otherwise"),
        pytest.param(replace(HEARD, closed=False), [PUSH], id="open for ever"),
        pytest.param(replace(HEARD, rest=b"HTTP/1.1 2"), [PUSH], id="half an answer"),
        pytest.param(replace(HEARD, answers=[]), [], id="no answer"),
        pytest.param(replace(HEARD, answers=[Answer(500, b"", b"", closes=True)]), [], id="failure of ours"),
        pytest.param(
            replace(HEARD, answers=[Answer(200, b"", SUCCESS + b"\n", closes=False)]), [PUSH], id="other body"
        ),
        pytest.param(replace(HEARD, answers=[Answer(400, b"", NOT_HTTP, closes=True)]), [], id="sound and refused"),
        pytest.param(replace(HEARD, answers=HEARD.answers * 2), [PUSH, PUSH], id="two answers"),
    ],
)
def test_each_way_of_being_wrong_is_found(heard: Heard, kept: list[Push]) -> None:
    """The judge is not blind to any."""
    assert judge(CASE, read_wire(REQUEST), heard, kept) != []


@pytest.mark.parametrize(
    "push",
    [
        Push(1, Route.BATCH, 1, BODY),
        Push(1, Route.SINGLE, 2, b"x", Reason.MISSING_ID),
        Push(1, Route.SINGLE, 1, b"x"),
        Push(1, Route.BATCH, 0, BODY, Reason.NOT_JSON),
    ],
)
def test_a_push_that_is_counted_or_judged_wrongly_is_found(push: Push) -> None:
    """The count of an answered push is what the accounts rest on, its verdict what becomes of it."""
    assert judge_push(push) != []


def test_a_lax_verifier_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If every signature were right, bent requests would pass."""
    from ingest.receiver import signature  # noqa: PLC0415

    monkeypatch.setattr(signature, "is_signature", lambda *_: True)
    tally = Tally()
    play_signed(tally, seed=1, numbers=range(50))

    assert any("was not signed so" in finding.what for finding in tally.findings)


def test_a_lax_decoder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a decoder took what is no JSON, or lost a report, the slow reader would disagree."""
    from ingest.contract import push  # noqa: PLC0415

    monkeypatch.setattr(push, "DEPTH_MAX", 70)
    tally = Tally()
    play_bodies(tally, seed=1, numbers=range(1_500))

    assert any("taken, but not readable" in finding.what for finding in tally.findings)


def test_growing_memory_is_found() -> None:
    """From the second quarter to the last; a run of few rounds says nothing."""
    assert growth_kib(list(range(0, 40_000, 1000))) == 20_000
    assert growth_kib([100_000, 110_000, *[115_000] * 20]) == 0
    assert growth_kib([1, 100_000]) == 0
