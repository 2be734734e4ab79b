"""The simulator: reproducible traffic whose truth is right, signed as the platform signs."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import orjson

from ingest.contract.push import split
from ingest.simulator.plan import BATCH_MAX, Plan, PlannedPush, PlanOptions
from ingest.simulator.signing import canonical_request, signature
from ingest.simulator.truth import truth_of

EXAMPLE = Path(__file__).parents[1] / "data" / "batch_example.json"


def planned(**changes: Any) -> tuple[Plan, list[PlannedPush], list[dict[str, Any]]]:
    """A small plan, its pushes and its truth."""
    options: dict[str, Any] = {
        "messages": 400,
        "seed": 7,
        "long_share": 0.5,
        "duplicate_share": 0.2,
        "invalid_share": 0.05,
        "incomplete_share": 0.05,
        "shuffle": True,
    }
    truth: list[dict[str, Any]] = []
    plan = Plan(PlanOptions(**options | changes), truth.append)
    return plan, list(plan.pushes()), truth


def test_the_same_seed_gives_the_same_traffic() -> None:
    """A run can be repeated byte for byte, and another seed gives another one."""
    assert planned()[1:] == planned()[1:]
    assert planned()[1] != planned(seed=8)[1]


def test_the_truth_follows_from_the_reports_that_are_sent() -> None:
    """What is sent, split as the receiver splits it, means what the truth says; unusable elements are all different."""
    plan, pushes, truth = planned()
    elements = [element for push in pushes for element in split(push.route, push.body)]
    sent: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for element in elements:
        if element.report:
            sent[element.report.message_id].append(orjson.loads(element.value))
    unusable = [element.value for element in elements if element.rejected]

    assert {line["smsMsgId"]: line for line in truth} == {key: truth_of(key, sent[key]) for key in sent}
    assert len(truth) == 400
    assert len(unusable) == len(set(unusable)) == plan.unusable > 0
    assert len(elements) == plan.reports
    assert max(push.reports for push in pushes) <= BATCH_MAX
    assert {"delivered", "incomplete", "partially_delivered", "failed"} <= {line["outcome"] for line in truth}
    assert max(Counter(element.value for element in elements if element.report).values()) > 1


def test_without_shuffle_segments_come_in_order() -> None:
    """Disorder is asked for, not built in."""
    _, pushes, _ = planned(shuffle=False, duplicate_share=0, invalid_share=0)
    seen: dict[str, int] = {}
    for push in pushes:
        for element in split(push.route, push.body):
            assert element.report is not None
            assert element.report.sequence >= seen.get(element.report.message_id, 0)
            seen[element.report.message_id] = element.report.sequence

    assert len(seen) == 400


def test_signatures_match_the_published_vectors() -> None:
    """V1 and V2 of protocol.md section 4."""
    first = canonical_request(
        "GET",
        "/v1/77b6a44cba5143ab91d13ab9a8ff44fd/vpcs",
        "limit=2&marker=13551d6b-755d-4757-b956-536f674975c0",
        {
            "content-type": "application/json",
            "host": "service.region.example.com",
            "x-sdk-date": "20191115T033655Z",
        },
        b"",
    )
    second = canonical_request(
        "POST",
        "/batchReport",
        "",
        {
            "connection": "close",
            "content-length": "331",
            "content-type": "application/JSON;charset=UTF-8",
            "host": "205.145.111.168:9330",
            "x-sdk-date": "20241212T070653Z",
        },
        EXAMPLE.read_bytes(),
    )

    assert (
        signature("MFyfvK41ba2giqM7Uio6PznpdUKGpownRZlmVmHc", "20191115T033655Z", first)
        == "7be6668032f70418fcc22abc52071e57aff61b84a1d2381bb430d6870f4f6ebe"
    )
    assert (
        signature("exampleSk*1231d881wd", "20241212T070653Z", second)
        == "c65b4ed12550e6b21c0a88e8d7b048a55028a6a7b684c44f95ff5784bab95e82"
    )
