"""What a Kafka client is given to reach the brokers."""

import ssl
from pathlib import Path

import pytest
import trustme
from pydantic import SecretStr

from ingest.contract.settings import KafkaSettings
from ingest.runtime.errors import UsageError
from ingest.runtime.kafka import client_options


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Whoever signs certificates here."""
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    """Files with the authority's certificate, and with a certificate and key of ours."""
    ours = authority.issue_cert("client@example.com")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    ours.private_key_pem.write_to_path(tmp_path / "key.pem")
    return {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}


def test_plain_needs_addresses_only() -> None:
    """Addresses are split; nothing else is said."""
    settings = KafkaSettings(kafka_bootstrap_servers="a:1, b:2")

    assert client_options(settings) == {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT"}


def test_a_login_is_handed_over() -> None:
    """User and password reach the client under its own names."""
    settings = KafkaSettings(
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="me",
        kafka_sasl_password=SecretStr("hunter2"),
    )

    options = client_options(settings)

    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("me", "hunter2")
    assert "ssl_context" not in options


def test_tls_checks_the_broker_and_shows_our_certificate(files: dict[str, Path]) -> None:
    """Only brokers of the named authority, by their host name, are talked to."""
    settings = KafkaSettings(
        kafka_security_protocol="SSL",
        kafka_ca_file=files["ca"],
        kafka_cert_file=files["cert"],
        kafka_key_file=files["key"],
    )

    context = client_options(settings)["ssl_context"]

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


def test_a_missing_authority_is_named(tmp_path: Path) -> None:
    """A file that is not there ends the command before anything is contacted."""
    settings = KafkaSettings(kafka_security_protocol="SSL", kafka_ca_file=tmp_path / "none.pem")

    with pytest.raises(UsageError, match=r"the certificates in .*none\.pem cannot be used: No such file"):
        client_options(settings)


def test_a_key_that_does_not_fit_is_named(files: dict[str, Path], authority: trustme.CA) -> None:
    """A certificate with another's key is a wrong setting."""
    authority.issue_cert("other@example.com").private_key_pem.write_to_path(files["key"])
    settings = KafkaSettings(kafka_security_protocol="SSL", kafka_cert_file=files["cert"], kafka_key_file=files["key"])

    with pytest.raises(UsageError, match=r"the certificate .*cert\.pem with the key .*key\.pem cannot be used: "):
        client_options(settings)
