"""What a worker says while Kafka confirms nothing."""

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from ingest.commands.kafka_away import AWAY_S, KafkaWatch
from ingest.runtime.clock import SystemClock


class Clock(SystemClock):
    """Stands still until it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


def test_one_line_when_reports_wait_and_one_when_kafka_is_back() -> None:
    """Not before some seconds, not without a report that waits, not twice; the gauge follows at once."""
    clock, registry = Clock(), CollectorRegistry()
    up, waiting = True, 0
    watch = KafkaWatch(registry, clock, available=lambda: up, pending=lambda: waiting, keeps=lambda: True)

    def look(seconds: float = 0.0) -> list[str]:
        clock.now += seconds
        with capture_logs() as lines:
            watch.look()
        return [f"{line['log_level']} {line.get('waiting_reports')}" for line in lines]

    assert look() == []
    assert registry.get_sample_value("dlrflow_kafka_connected") == 1
    up = False
    assert look() == []
    assert registry.get_sample_value("dlrflow_kafka_connected") == 0
    assert look(AWAY_S) == []
    waiting = 7
    assert look(1) == ["warning 7"]
    assert look(60) == []
    up = True
    assert look(1) == ["info 7"]
    up = False
    assert look(1) == []
    assert look(AWAY_S - 1) == []
    assert look(1) == ["warning 7"]
