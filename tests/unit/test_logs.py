"""Logs are quiet about what repeats and silent about secrets."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from ingest.runtime.logs import Rarely, configure


class HandClock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def _loggers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    logging.getLogger("aiokafka").setLevel(logging.NOTSET)
    logging.getLogger("asyncio").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def record(message: str, *args: object, name: str = "aiokafka.client") -> logging.LogRecord:
    """A record as the Kafka client logs it."""
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, args, None)


def test_a_repeated_message_passes_once_per_interval() -> None:
    """While a broker is away its clients say so every ten seconds, with the number of times they held back."""
    clock = HandClock()
    rarely = Rarely("aiokafka", 10, clock)

    passed = [rarely.filter(record("node %s away", node)) for node in range(100)]
    clock.now += 10
    later = record("node %s away", 1)

    assert passed == [True] + [False] * 99
    assert rarely.filter(later)
    assert later.__dict__["suppressed"] == 99


def test_other_messages_and_other_loggers_pass() -> None:
    """Only what repeats, and only the noisy family, is held back."""
    rarely = Rarely("aiokafka", 10, HandClock())
    rarely.filter(record("away"))

    assert rarely.filter(record("another"))
    assert all(rarely.filter(record("away", name="ours")) for _ in range(3))
    assert rarely.filter(record("away", name="aiokafkaesque"))


def test_the_memory_for_messages_is_bounded() -> None:
    """A library that puts values into its templates cannot fill our memory."""
    rarely = Rarely("aiokafka", 10, HandClock())

    for number in range(10_000):
        rarely.filter(record(f"away {number}"))

    assert len(rarely._seen) <= 512


@pytest.mark.usefixtures("_loggers_as_before")
def test_json_lines_have_time_level_logger_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """Ours and a library's lines look alike, one JSON object each on standard error."""
    configure("json", "info")

    structlog.get_logger("ours").info("spool opened", folder="a")
    logging.getLogger("theirs").warning("node %s away", 1)
    structlog.get_logger("ours").debug("not shown")

    captured = capsys.readouterr()
    ours, theirs = map(json.loads, captured.err.splitlines())
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {"event": "spool opened", "folder": "a", "level": "info", "logger": "ours"}
    assert theirs["event"] == "node 1 away"
    assert captured.out == ""


@pytest.mark.usefixtures("_loggers_as_before")
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_does_not_show_local_variables(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    """Values of variables may be secrets or phone numbers."""
    configure(log_format, "debug")  # type: ignore[arg-type]
    password = "hunter-" + str(1 + 1)

    try:
        _ = len(password) / 0
    except ZeroDivisionError:
        structlog.get_logger("ours").exception("failed")

    text = capsys.readouterr().err
    assert "ZeroDivisionError" in text
    assert "hunter-2" not in text


@pytest.mark.usefixtures("_loggers_as_before")
def test_the_kafka_client_is_never_logged_in_detail() -> None:
    """What it says at debug level holds whole requests, passwords included."""
    configure("json", "debug")

    assert not logging.getLogger("aiokafka.conn").isEnabledFor(logging.DEBUG)
