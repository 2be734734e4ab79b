"""Every check of the deployment files, broken once on purpose."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import yaml

from deploy import validate

Stack = dict[str, Any]

VERSIONS = validate.pom_versions(ET.parse(validate.POM).getroot())  # noqa: S314 - our own file


@pytest.fixture
def stack() -> Stack:
    """Give the real stack, to be broken."""
    found: Stack = copy.deepcopy(yaml.safe_load(validate.COMPOSE.read_text()))
    return found


def at(*path: str, value: object) -> Callable[[Stack], None]:
    """Put a value at a place in the stack."""

    def change(stack: Stack) -> None:
        for name in path[:-1]:
            stack = stack.setdefault(name, {})
        stack[path[-1]] = value

    return change


def without(*path: str) -> Callable[[Stack], None]:
    """Take away what is at a place in the stack."""

    def change(stack: Stack) -> None:
        for name in path[:-1]:
            stack = stack[name]
        del stack[path[-1]]

    return change


def test_the_files_as_they_are_pass() -> None:
    """There is nothing to find in what we ship."""
    assert validate.main() == 0


def test_the_schema_of_compose_is_asked(tmp_path: Path) -> None:
    """A member that compose does not know is a finding."""
    file = tmp_path / "docker-compose.yml"
    file.write_text("services: {kafka: {image: 'a:1.2', restarts: always}}\n")

    assert any("restarts" in finding for finding in validate.compose_schema(file))


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (without("services", "assembler"), "no service assembler"),
        (at("services", "kafka", "image", value="apache/kafka:latest"), "has no full version"),
        (at("services", "kafka", "image", value="apache/kafka:4.2.0"), "tag 4.2.0, but deploy/local/pom.xml has"),
        (at("services", "sink", "build", value={"context": ".", "dockerfile": "Dockerfile"}), "no file Dockerfile"),
        (at("services", "sink", "environment", "DLR_POSTGRES_DNS", value="x"), "DLR_POSTGRES_DSN"),
        (at("services", "receiver", "environment", "DLR_HTTP_PORT", value="http"), "DLR_HTTP_PORT"),
        (at("services", "receiver", "environment", "HTTP_PORT", value=1), "HTTP_PORT: no setting"),
        (at("services", "receiver", "command", value=["ingest", "receive"]), "not one of the product"),
        (at("services", "sink", "depends_on", "redis", value={"condition": "service_started"}), "does not exist"),
        (without("services", "kafka", "healthcheck"), "waits for kafka to be healthy"),
        (
            at("services", "sink", "depends_on", "topics", "condition", value="service_started"),
            "waits for topics with service_started",
        ),
        (without("services", "receiver", "healthcheck"), "receiver: has no health check"),
        (at("services", "sink", "restart", value="no"), "sink: is not restarted"),
        (at("services", "sink", "healthcheck", "test", value=["CMD", "python", "-c", "print("]), "health check: "),
        (at("services", "sink", "environment", "DLR_ADMIN_PORT", value=9999), "/readyz on port 9999"),
        (at("services", "receiver", "volumes", value=["other:/var/lib/dlrflow/spool"]), "volume other is not declared"),
        (at("services", "receiver", "volumes", value=[]), "DLR_SPOOL_DIR=/var/lib/dlrflow/spool is on no volume"),
        (at("services", "postgres", "ports", value=["5432:5432"]), "postgres: publishes 5432:5432"),
    ],
)
def test_a_broken_stack_is_found(stack: Stack, change: Callable[[Stack], None], finding: str) -> None:
    """Each mistake yields a line that names it."""
    change(stack)

    assert any(finding in line for line in validate.compose(stack, VERSIONS))


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("python:3.11.13-slim-bookworm", "python:3", "python:3 has no full version"),
        ("--require-hashes", "", "without their hashes"),
        ("USER 10001:10001", "", "runs as root"),
        ("USER 10001:10001", "USER 0", "runs as root"),
        ("COPY consumers consumers", "COPY nothing nothing", "copies nothing, which does not exist"),
        ("COPY consumers consumers", "COPY tests tests", "copies tests, which .dockerignore keeps out"),
        ("ARG PIP_INDEX_URL", "ENV PIP_INDEX_URL=https://example.org/simple", "names an address"),
    ],
)
def test_a_broken_dockerfile_is_found(old: str, new: str, finding: str) -> None:
    """Each mistake yields a line that names it."""
    text = validate.DOCKERFILE.read_text()
    assert old in text

    findings = list(validate.dockerfile(text.replace(old, new), validate.DOCKERIGNORE.read_text()))

    assert any(finding in line for line in findings)


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("<version>3.8.1</version>", "", "plugin maven-dependency-plugin has no exact version"),
        ("<version>${kafka.version}</version>", "<version>LATEST</version>", "kafka_2.13 has no exact version"),
        ("<build>", "<repositories><repository/></repositories><build>", "names a repository"),
    ],
)
def test_a_broken_pom_is_found(old: str, new: str, finding: str) -> None:
    """Each mistake yields a line that names it."""
    text = validate.POM.read_text()
    assert old in text

    root = ET.fromstring(text.replace(old, new).encode())  # noqa: S314 - our own file

    assert any(finding in line for line in validate.pom(root))


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("-m ingest receive", "-m http.server", "is not one of the product"),
        ("DLR_ADMIN_PORT=9464", "DLR_ADMIN_PROT=9464", "DLR_ADMIN_PROT"),
        ("TimeoutStopSec=30", "TimeoutStopSec=20", "is killed before DLR_SHUTDOWN_GRACE_S (20 s)"),
        ("RestartPreventExitStatus=2", "", "again and again with a wrong setting"),
        ("=/var/lib/dlrflow/spool", "=var/spool", "DLR_SPOOL_DIR=var/spool is not in its StateDirectory"),
        ("User=dlrflow", "User=root", "runs as root"),
        ("ProtectSystem=strict", "", "ProtectSystem is not strict"),
    ],
)
def test_a_broken_unit_is_found(old: str, new: str, finding: str) -> None:
    """Each mistake yields a line that names it."""
    text = (validate.UNITS / "dlrflow-receive.service").read_text()
    assert old in text

    findings = list(validate.unit(validate.directives(text.replace(old, new))))

    assert any(finding in line for line in findings)


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"expr": "dlrflow_spool_age_seconds > 1"}, "docs/contract.md knows no dlrflow_spool_age_seconds"),
        ({"expr": "dlrflow_connections > 1"}, "does not say what to do about dlrflow_connections"),
        ({"labels": {}}, "has no severity"),
        ({"annotations": {}}, "has no summary"),
    ],
)
def test_a_broken_alert_is_found(changed: Stack, finding: str) -> None:
    """Each mistake yields a line that names it."""
    rule = {"alert": "A", "expr": "up", "labels": {"severity": "page"}, "annotations": {"summary": "text"}} | changed
    rules = {"groups": [{"name": "g", "rules": [rule]}]}

    findings = list(validate.alerts(rules, known={"dlrflow_connections"}, explained=set()))

    assert any(finding in line for line in findings)


def test_the_contract_names_every_metric_of_the_product() -> None:
    """Neither side has a metric that the other does not know."""
    sources = [*validate.ROOT.glob("ingest/**/*.py"), *validate.ROOT.glob("consumers/**/*.py")]
    made = re.findall(
        r'(counter|gauge|histogram)\(\s*"(dlrflow_[a-z_]+)"',
        "".join(file.read_text() for file in sources),
        re.IGNORECASE,
    )
    names = {name.removesuffix("_total") + "_total" if kind.lower() == "counter" else name for kind, name in made}
    names |= {f"dlrflow_{files}_looked_timestamp_seconds" for files in ("auth_keys_file", "tls_files")}

    assert names == set(validate.METRIC.findall(validate.CONTRACT.read_text().partition("## 12. ")[2]))
