"""What judges a run of faults finds what is wrong in the results, wherever in a message's revisions it stands."""

import pytest

from tests.assembling import a_report, written
from tests.crash.chaos_judge import is_right
from tests.oracle import TIMEOUT, Raw, all_results

RECORDS: list[tuple[Raw, int]] = [
    (a_report("m", 1, 2), 1_000),
    (a_report("m", 2, 2, "ACCEPTD"), 2_000),
    (a_report("m", 1, 2), 3_000),
    (a_report("m", 2, 2, "UNDELIV"), 4_000),
    (a_report("m", 3, 3), 5_000),
]
COMPLETE = written(all_results(RECORDS))
TIMED_OUT = [written(all_results([*RECORDS[:n], TIMEOUT, *RECORDS[n:]])) for n in range(1, 4)]


@pytest.mark.parametrize("chain", [COMPLETE, *TIMED_OUT])
def test_all_results_are_right_whenever_the_timeout_was(chain: list[bytes]) -> None:
    """When the timeout came is open; after the first result each report that changes something is a revision."""
    assert is_right(RECORDS, chain)


@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(COMPLETE[:-1], id="the last revision is missing"),
        pytest.param(COMPLETE[1:], id="the first one is missing"),
        pytest.param([TIMED_OUT[0][0], *TIMED_OUT[0][2:]], id="one in the middle is missing"),
        pytest.param([COMPLETE[0], *COMPLETE], id="one stands there twice"),
        pytest.param([TIMED_OUT[0][0], *COMPLETE], id="timed out and complete for the first time"),
        pytest.param([value.replace(b"complete", b"timeout") for value in COMPLETE], id="another reason"),
        pytest.param([COMPLETE[0].replace(b"UNDELIV", b"DELIVRD"), COMPLETE[1]], id="another status"),
        pytest.param([COMPLETE[0].replace(b":04.000Z", b":05.000Z"), COMPLETE[1]], id="another time of receipt"),
    ],
)
def test_anything_else_is_wrong(chain: list[bytes]) -> None:
    """One result too few or too many is found, and one that says something else, though the last one is right."""
    assert chain not in [COMPLETE, *TIMED_OUT]
    assert not is_right(RECORDS, chain)
