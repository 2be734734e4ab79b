"""Hypothesis strategies for what the platform may send."""

from typing import Any

from hypothesis import strategies as st

from tests.oracle import Raw

STATUSES = ["DELIVRD", "ACCEPTD", "UNKNOWN", "EXPIRED", "UNDELIV", "REJECTD", "E200018", "CL26:-36", "MK:0012"]
TIMES = ["2023-04-18T07:26:00Z", "2023-04-18T07%3A26%3a00Z", "2023-04-18T07:26:01Z", "2023-04-18T07:27:00Z", "soon"]

BEYOND_THE_BASIC_PLANE = ["\U0001f600", "\uffee", "\ud7ff", "\ue000", "\u00e9", "z", "Z"]
"""Texts whose order by UTF-16 code units differs from the order by UTF-8 bytes."""

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
absent = st.sampled_from([None, ""])

statuses = st.sampled_from(STATUSES) | st.integers(-9, 9) | plain_text.filter(bool)
update_times = st.sampled_from(TIMES) | absent | plain_text
short_texts = st.sampled_from(["1", "2", "000", 2, 0, *BEYOND_THE_BASIC_PLANE]) | absent | plain_text
free_texts = st.sampled_from(["+8613500000001", "x", *BEYOND_THE_BASIC_PLANE]) | absent | any_text


def numbers(greatest: int) -> st.SearchStrategy[int | str]:
    """A segment number in each way in which it may be written."""
    return st.integers(1, greatest).flatmap(lambda n: st.sampled_from([n, str(n), f"{n:02}"]))


@st.composite
def reports(draw: st.DrawFn, message_id: str = "m1", greatest: int = 4) -> Raw:
    """One usable report of a message, from pools so small that reports tie, repeat and contradict each other."""
    raw: dict[str, Any] = {"smsMsgId": message_id, "status": draw(statuses)}
    sequence = draw(absent | numbers(greatest))
    total = draw(absent | numbers(greatest))
    if not total or int(total) >= int(sequence or 1):
        raw["total"] = total
    raw["sequence"] = sequence
    for name, strategy in (
        ("source", short_texts),
        ("updateTime", update_times),
        ("orgCode", short_texts),
        ("to", free_texts),
        ("extend", free_texts),
    ):
        if draw(st.booleans()):
            raw[name] = draw(strategy)
    return raw


@st.composite
def deliveries(draw: st.DrawFn, most: int = 8) -> list[Raw]:
    """The reports of one message as they come in: in any order, some of them again."""
    once = draw(st.lists(reports(), min_size=1, max_size=most))
    again = draw(st.lists(st.sampled_from(once), max_size=4))
    return draw(st.permutations(once + again))


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(any_text, inner, max_size=2),
    max_leaves=3,
)


@st.composite
def doubtful_reports(draw: st.DrawFn) -> Any:
    """Something near a report: one or two of its fields hold whatever JSON can hold."""
    raw = draw(reports(greatest=99))
    names = ["smsMsgId", "status", "sequence", "total", "source", "updateTime", "orgCode", "to", "extend", "new"]
    near = st.sampled_from(["\x1f", "a\x7f", "0", "00", "100", "1 ", 0, 100, 2**64, -(2**63), "x" * 65, "x" * 51])
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)):
        raw[name] = draw(near | any_json)
    return draw(st.just(raw) | any_json) if draw(st.integers(0, 9)) == 0 else raw
