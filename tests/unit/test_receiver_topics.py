"""What the receiver says of the topics at its start."""

import asyncio

import pytest
from structlog.testing import capture_logs

from ingest.commands import receive_topics
from ingest.commands.receive_topics import start_look
from ingest.settings import ReceiveSettings
from tests.fakes.forward import PromptClock


async def test_a_look_that_fails_is_seen_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the receiver ends, weeks later, or never."""
    fault = RuntimeError("a fault of ours")

    def fail(*_arguments: object, **_options: object) -> None:
        raise fault

    monkeypatch.setattr(receive_topics, "TopicAdmin", fail)
    with capture_logs() as logs:
        looking = start_look(ReceiveSettings(), {}, PromptClock())
        await asyncio.wait({looking})
        await asyncio.sleep(0)

    assert [(line["event"], line["exc_info"]) for line in logs] == [("the look at the topics failed", fault)]


async def test_a_look_that_is_ended_with_the_receiver_says_nothing() -> None:
    """A stop is no failure."""
    with capture_logs() as logs:
        looking = start_look(ReceiveSettings(), {"bootstrap_servers": ["127.0.0.1:1"]}, PromptClock())
        looking.cancel()
        await asyncio.wait({looking})
        await asyncio.sleep(0)

    assert logs == []
