"""Every combination of the settings that say how to log in to Kafka: it is whole, or one line says what is not."""

from collections.abc import Iterator
from itertools import chain, combinations

import pytest

from ingest.contract.settings import PREFIX, KafkaSettings, LogSettings, all_fields
from ingest.runtime.errors import UsageError
from ingest.runtime.settings import Settings, Surface, load

SURFACE = Surface(prefix=PREFIX, fields=all_fields())
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
VALUES = {
    "DLR_KAFKA_SASL_MECHANISM": "SCRAM-SHA-256",
    "DLR_KAFKA_SASL_USERNAME": "me",
    "DLR_KAFKA_SASL_PASSWORD": "hunter2",
    "DLR_KAFKA_CA_FILE": "ca.pem",
    "DLR_KAFKA_CERT_FILE": "cert.pem",
    "DLR_KAFKA_KEY_FILE": "key.pem",
}
LOGIN = frozenset(list(VALUES)[:3])
PAIR = frozenset(list(VALUES)[4:])
CERTIFICATES = frozenset(list(VALUES)[3:])


class Login(KafkaSettings, LogSettings, Settings):
    """What a command that talks to Kafka reads."""


def choices() -> Iterator[tuple[str, frozenset[str]]]:
    """Every protocol with every set of the other settings."""
    sets = list(chain.from_iterable(combinations(VALUES, size) for size in range(len(VALUES) + 1)))
    return ((protocol, frozenset(chosen)) for protocol in PROTOCOLS for chosen in sets)


def is_whole(protocol: str, chosen: frozenset[str]) -> bool:
    """Whether these belong together."""
    login = chosen & LOGIN == (LOGIN if protocol.startswith("SASL") else frozenset())
    certificates = protocol.endswith("SSL") or not chosen & CERTIFICATES
    return login and certificates and chosen & PAIR in (PAIR, frozenset())


def read(protocol: str, chosen: frozenset[str], **more: str) -> Login:
    """Load them as a command does."""
    environ = {name: VALUES[name] for name in chosen} | {"DLR_KAFKA_SECURITY_PROTOCOL": protocol} | more
    return load(Login, SURFACE, environ=environ).settings


def test_every_whole_combination_is_taken_and_no_other() -> None:
    """Four protocols with 64 sets of settings each: what is half said is never guessed at."""
    taken = []
    for protocol, chosen in choices():
        try:
            read(protocol, chosen)
        except UsageError:
            continue
        taken.append((protocol, chosen))

    assert taken == [choice for choice in choices() if is_whole(*choice)]
    assert len(taken) == 10


def test_every_mistake_is_one_line_that_names_settings_and_no_secret() -> None:
    """Whoever reads it knows which names to look at."""
    for protocol, chosen in choices():
        if not is_whole(protocol, chosen):
            with pytest.raises(UsageError) as raised:
                read(protocol, chosen)
            said = str(raised.value)
            assert "\n" not in said
            assert "hunter2" not in said
            assert any(name in said for name in VALUES)
            if "need each other" not in said:
                assert "DLR_KAFKA_SECURITY_PROTOCOL" in said


@pytest.mark.parametrize("mechanism", ["GSSAPI", "OAUTHBEARER", "scram-sha-256", "SCRAM-SHA-1"])
def test_a_login_that_we_cannot_do_is_named(mechanism: str) -> None:
    """With those that we can."""
    with pytest.raises(UsageError, match=r"DLR_KAFKA_SASL_MECHANISM .* one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"):
        read("SASL_SSL", LOGIN, DLR_KAFKA_SASL_MECHANISM=mechanism)
