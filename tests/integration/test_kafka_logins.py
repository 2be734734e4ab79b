"""Ways to log in to a real Kafka, and what is said when it does not work."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.commands import receive_topics
from ingest.contract.settings import KafkaSettings
from ingest.forward.kafka import KafkaLink
from ingest.runtime.clock import SystemClock
from ingest.runtime.errors import ServiceAwayError
from ingest.runtime.first_answer import LoginRefusedError, refusal
from ingest.runtime.kafka import TopicAdmin, client_options
from ingest.settings import ReceiveSettings
from tests.acls.ground import Guarded
from tests.assembling import until
from tests.fakes.forward import PromptClock

WRONG = "hunter2"

Login = Callable[[Guarded], Mapping[str, Any]]


def _ssl(guarded: Guarded, listener: str = "SSL", ca_file: Path | None = None) -> dict[str, Any]:
    return {
        "kafka_bootstrap_servers": guarded.kafka.secured(listener),
        "kafka_security_protocol": "SSL",
        "kafka_ca_file": str(ca_file or guarded.security.ca_file),
    }


def _by_a_strange_certificate(guarded: Guarded) -> dict[str, Any]:
    pair = guarded.security.strange_client("joe")
    return _ssl(guarded, "MTLS") | {"kafka_cert_file": str(pair.cert_file), "kafka_key_file": str(pair.key_file)}


def _by_password(mechanism: str, **more: str) -> Login:
    return lambda guarded: guarded.by_password("looker", mechanism, **more)


def _without(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def _async(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return condition()

    return ask


GOOD: Mapping[str, Login] = {
    "SSL": _ssl,
    "SSL with a certificate": lambda guarded: guarded.by_certificate("anybody"),
    **{
        f"{listener} {mechanism}": _by_password(mechanism, listener=listener)
        for listener in ("SASL_SSL", "SASL_PLAINTEXT")
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    },
    "one of two brokers is away": lambda guarded: (
        _ssl(guarded) | {"kafka_bootstrap_servers": f"127.0.0.1:1,{guarded.kafka.secured('SSL')}"}
    ),
}

REFUSED: Mapping[str, tuple[Login, str]] = {
    **{
        f"wrong password, {mechanism}": (
            _by_password(mechanism, password=WRONG),
            r"refuses the login of the user looker: Authentication failed",
        )
        for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    },
    "unknown user": (
        lambda guarded: guarded.by_password("nobody", "SCRAM-SHA-512"),
        r"refuses the login of the user nobody",
    ),
    "wrong password, and another broker away": (
        lambda guarded: (
            (login := guarded.by_password("looker", "PLAIN", password=WRONG))
            | {"kafka_bootstrap_servers": f"{login['kafka_bootstrap_servers']},127.0.0.1:1"}
        ),
        r"refuses the login of the user looker",
    ),
    "unknown authority": (
        lambda guarded: _ssl(guarded, ca_file=guarded.security.strange_ca_file),
        r"the certificate of Kafka at 127\.0\.0\.1:\d+ is refused: unable to get local issuer certificate",
    ),
    "authorities of the system": (
        lambda guarded: _without(_ssl(guarded), "kafka_ca_file"),
        r"is refused: unable to get local issuer certificate",
    ),
    "another host's certificate": (
        lambda guarded: guarded.by_password("looker", "PLAIN", listener="STRANGER"),
        r"is refused: IP address mismatch, certificate is not valid for '127\.0\.0\.1'",
    ),
    "a login where none is taken": (
        lambda guarded: (
            guarded.by_password("looker", "PLAIN", listener="SASL_PLAINTEXT")
            | {"kafka_bootstrap_servers": guarded.kafka.bootstrap}
        ),
        r"takes no login: this is no port for SASL",
    ),
}

SHUT: Mapping[str, tuple[Login, str]] = {
    "plain to a TLS port": (
        lambda guarded: {"kafka_bootstrap_servers": guarded.kafka.secured("SSL")},
        r"closes connections before it answers anything: it may want another security protocol",
    ),
    "plain to a port with logins": (
        lambda guarded: {"kafka_bootstrap_servers": guarded.kafka.secured("SASL_PLAINTEXT")},
        r"closes connections before it answers anything",
    ),
    "TLS to a plain port": (
        lambda guarded: _ssl(guarded) | {"kafka_bootstrap_servers": guarded.kafka.bootstrap},
        r"no TLS with 127\.0\.0\.1:\d+",
    ),
    "no certificate of ours": (
        lambda guarded: _ssl(guarded, "MTLS"),
        r"closes connections .* or a certificate of ours that it trusts",
    ),
    "a certificate by a strange authority": (
        _by_a_strange_certificate,
        r"closes connections .* or a certificate of ours that it trusts",
    ),
}
"""Here nobody says what is wrong: it could as well be a broker that is just stopping."""


@pytest.mark.parametrize("login", GOOD.values(), ids=GOOD)
async def test_every_way_in_works(guarded_kafka: Guarded, login: Login) -> None:
    """With host names checked wherever there is TLS."""
    options = client_options(KafkaSettings(**login(guarded_kafka)))

    async with TopicAdmin(options) as admin:
        cluster = await admin.cluster_id()

    assert cluster
    assert await refusal(options) == ""


@pytest.mark.parametrize(("login", "words"), REFUSED.values(), ids=REFUSED)
async def test_a_login_for_which_waiting_is_no_use_ends_a_command_at_once(
    guarded_kafka: Guarded, caplog: pytest.LogCaptureFixture, login: Login, words: str
) -> None:
    """Status 2 and the cause, not brokers that are away; a password stands in no line and no log."""
    options = client_options(KafkaSettings(**login(guarded_kafka)))

    with pytest.raises(LoginRefusedError, match=words) as raised:
        async with TopicAdmin(options):
            pass

    assert raised.value.status == 2
    assert await refusal(options) == str(raised.value)
    assert WRONG not in str(raised.value) + caplog.text


@pytest.mark.parametrize(("login", "words"), SHUT.values(), ids=SHUT)
async def test_a_door_that_stays_shut_is_described(guarded_kafka: Guarded, login: Login, words: str) -> None:
    """Status 3 after the time that a service may stay away, with what the broker does and what it may want."""
    options = client_options(KafkaSettings(**login(guarded_kafka)))

    with pytest.raises(ServiceAwayError, match=words) as raised:
        async with TopicAdmin(options, patience_s=0.5):
            pass

    assert raised.value.status == 3


async def test_a_receiver_says_once_why_it_is_refused_and_waits(guarded_kafka: Guarded) -> None:
    """Publishing goes on trying, more and more slowly; the same cause is not said again."""
    options = client_options(KafkaSettings(**guarded_kafka.by_password("looker", "PLAIN", password=WRONG)))
    clock = PromptClock()
    link = KafkaLink(options, clock)
    with capture_logs() as logs:
        opening = asyncio.create_task(link.partitions("reports"))
        await until(_async(lambda: len(clock.slept) >= 3))
        opening.cancel()
        await asyncio.wait({opening})
        await link.close()

    said = [line["because"] for line in logs if line["event"].startswith("Kafka is away")]
    assert len(said) == 1
    assert "refuses the login of the user looker: Authentication failed" in said[0]
    assert clock.slept == sorted(clock.slept)
    assert WRONG not in str(logs)


async def test_a_receivers_look_goes_on_after_a_refusal(
    guarded_kafka: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again after a pause: a password may be put right on the other side."""
    monkeypatch.setattr(receive_topics, "RETRY_S", 0.01)
    settings = ReceiveSettings(**guarded_kafka.by_password("looker", "PLAIN", password=WRONG))
    with capture_logs() as logs:
        looking = receive_topics.start_look(settings, client_options(settings), SystemClock())
        await until(_async(lambda: len(logs) >= 2))
        looking.cancel()
        await asyncio.wait({looking})

    assert {line["log_level"] for line in logs} == {"warning"}
    assert "refuses the login of the user looker" in logs[0]["because"]
