"""The demo finds a Kafka where there is one to be had."""

import pytest

from deploy.local import containers, demo
from deploy.local.processes import LocalServiceError


def no_java() -> tuple[str, str]:
    """A machine without Java."""
    raise LocalServiceError("Java 17 or newer is needed")


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "class_path", lambda: "kafka.jar")
    monkeypatch.setattr(demo, "java_program", lambda: ("java", "17"))


def test_java_and_maven_are_enough() -> None:
    """The stack then runs a node of its own."""
    assert demo.kafka_to_use(keep=False) is None


def test_a_docker_engine_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Java a container does, as long as nothing is to be kept."""
    monkeypatch.setattr(demo, "java_program", no_java)
    monkeypatch.setattr(containers, "engine_answers", lambda: True)

    assert isinstance(demo.kafka_to_use(keep=False), containers.ContainerKafka)
    with pytest.raises(LocalServiceError, match="docker compose up"):
        demo.kafka_to_use(keep=True)


def test_with_neither_the_demo_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and what to install."""
    monkeypatch.setattr(demo, "java_program", no_java)
    monkeypatch.setattr(containers, "engine_answers", lambda: False)

    with pytest.raises(LocalServiceError, match="Java 17"):
        demo.kafka_to_use(keep=False)
