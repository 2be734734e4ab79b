"""Validate the deployment files: compose, Dockerfile, the local services' pom.xml, systemd units, alert rules.

Run by `make check`. One line per finding; exit status 1 if there is any. Needs no engine and no network.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import yaml

from consumers.settings import ConsumersSettings
from ingest.contract.settings import PREFIX, all_fields
from ingest.runtime.errors import UsageError
from ingest.runtime.settings import Settings, Surface, load
from ingest.settings import IngestSettings

ROOT: Final = Path(__file__).parents[1]
COMPOSE: Final = ROOT / "docker-compose.yml"
DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
DOCKERIGNORE: Final = ROOT / ".dockerignore"
POM: Final = ROOT / "deploy" / "local" / "pom.xml"
UNITS: Final = ROOT / "deploy" / "systemd"
ALERTS: Final = ROOT / "deploy" / "alerts.yml"
CONTRACT: Final = ROOT / "docs" / "contract.md"
OPERATIONS: Final = ROOT / "docs" / "operations.md"

MODELS: Final[Mapping[str, type[Settings]]] = {"ingest": IngestSettings, "consumers": ConsumersSettings}
ONE_SHOT: Final = {"topics"}
NEEDED: Final = {"kafka", "topics", "receiver", "assembler", "postgres", "sink"}
INSTANCES: Final = {"dlrflow-receive": "", "dlrflow-assemble@": "9471", "dlrflow-sink@": "postgres"}
HARDENING: Final = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "CapabilityBoundingSet": "",
}
METRIC: Final = re.compile(r"\bdlrflow_[a-z_]+")
PINNED_IMAGE: Final = re.compile(r"[a-z0-9./-]+:\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?")
PINNED_VERSION: Final = re.compile(r"\d+(\.\d+)+")
ADDRESS: Final = re.compile(r"https?://")
INTERPOLATION: Final = re.compile(r"\$\{[A-Z_]+:-([^}]*)\}")
POM_NAMESPACE: Final = {"m": "http://maven.apache.org/POM/4.0.0"}

Findings = Iterator[str]


def main() -> int:
    """Print every finding; return the exit status."""
    findings = [finding for check in CHECKS for finding in check()]
    for finding in findings:
        print(finding, file=sys.stderr)
    if not findings:
        print("deployment files: no findings")
    return 1 if findings else 0


def compose_schema(file: Path = COMPOSE) -> Findings:
    """Hold the file to the official schema of the compose specification."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        yield from (done.stdout + done.stderr).strip().splitlines()


def compose_file() -> Findings:
    """Read docker-compose.yml and check what no schema can."""
    pom = ET.parse(POM)  # noqa: S314 - our own file
    yield from compose(yaml.safe_load(COMPOSE.read_text()), pom_versions(pom.getroot()))


def compose(stack: Mapping[str, Any], versions: Mapping[str, str]) -> Findings:
    """Check the services of a stack one by one and against each other.

    Args:
        stack: the parsed file, anchors resolved.
        versions: of the local services by name; the containers must run the same.
    """
    services: Mapping[str, Mapping[str, Any]] = stack["services"]
    for name in sorted(NEEDED - services.keys()):
        yield f"compose: no service {name}"
    for name, service in services.items():
        for check in (image, settings, dependencies, health, volumes, ports):
            for finding in check(name, service, stack):
                yield f"compose: {name}: {finding}"
    for name in ("kafka", "postgres"):
        tag = str(services.get(name, {}).get("image", "")).rpartition(":")[2]
        if not versions[name].startswith(tag):
            yield f"compose: {name}: tag {tag}, but deploy/local/pom.xml has {versions[name]}"


def image(_name: str, service: Mapping[str, Any], _stack: Mapping[str, Any]) -> Findings:
    """An image is built from a Dockerfile that exists, or has a full version."""
    build = service.get("build")
    if build is None:
        if not PINNED_IMAGE.fullmatch(str(service.get("image"))):
            yield f"image {service.get('image')} has no full version"
    elif not (ROOT / build["context"] / build["dockerfile"]).is_file():
        yield f"no file {build['dockerfile']}"


def settings(_name: str, service: Mapping[str, Any], _stack: Mapping[str, Any]) -> Findings:
    """The product itself accepts the settings, names and values."""
    command = service.get("command")
    if command is None:
        return
    if command[:2] != ["python", "-m"] or command[2] not in MODELS:
        yield f"command {command} is not one of the product"
        return
    environ = {name: interpolated(str(value)) for name, value in service.get("environment", {}).items()}
    foreign = sorted(name for name in environ if not name.startswith(PREFIX))
    if foreign:
        yield f"{', '.join(foreign)}: no setting of the product"
    try:
        load(MODELS[command[2]], Surface(prefix=PREFIX, fields=all_fields()), environ=environ)
    except UsageError as error:
        yield str(error)


def interpolated(value: str) -> str:
    """Return a value as compose passes it on when the shell says nothing."""
    return INTERPOLATION.sub(r"\1", value)


def dependencies(_name: str, service: Mapping[str, Any], stack: Mapping[str, Any]) -> Findings:
    """What is waited for exists and can come to be so."""
    for other, wanted in service.get("depends_on", {}).items():
        target = stack["services"].get(other)
        if target is None:
            yield f"depends on {other}, which does not exist"
        elif wanted["condition"] == "service_healthy" and "healthcheck" not in target:
            yield f"waits for {other} to be healthy, which has no health check"
        elif (wanted["condition"] == "service_completed_successfully") != (other in ONE_SHOT):
            yield f"waits for {other} with {wanted['condition']}"


def health(name: str, service: Mapping[str, Any], _stack: Mapping[str, Any]) -> Findings:
    """What runs for ever has a health check that can be run, and is started again when it ends."""
    if name in ONE_SHOT:
        return
    if service.get("restart") != "unless-stopped":
        yield "is not restarted"
    test = service.get("healthcheck", {}).get("test")
    if test is None:
        yield "has no health check"
    elif test[:3] == ["CMD", "python", "-c"]:
        try:
            compile(test[3], "health check", "exec")
        except SyntaxError as error:
            yield f"health check: {error}"
        port = service.get("environment", {}).get("DLR_ADMIN_PORT")
        if f":{port}/readyz'" not in test[3]:
            yield f"health check does not ask /readyz on port {port}"


def volumes(_name: str, service: Mapping[str, Any], stack: Mapping[str, Any]) -> Findings:
    """Volumes are declared, and every folder that a setting names is on one: all else is lost with the container."""
    mounts = dict(entry.split(":", 1) for entry in service.get("volumes", ()))
    for volume in mounts:
        if volume not in stack.get("volumes", {}):
            yield f"volume {volume} is not declared"
    for name, value in service.get("environment", {}).items():
        if name.startswith(PREFIX) and name.endswith("_DIR") and value not in mounts.values():
            yield f"{name}={value} is on no volume"


def ports(name: str, service: Mapping[str, Any], _stack: Mapping[str, Any]) -> Findings:
    """Only the callbacks are published to other machines."""
    for port in service.get("ports", ()):
        if name != "receiver" and not str(port).startswith("127.0.0.1:"):
            yield f"publishes {port}"


def dockerfile_file() -> Findings:
    """Read the Dockerfile and .dockerignore and check them."""
    yield from dockerfile(DOCKERFILE.read_text(), DOCKERIGNORE.read_text())


def dockerfile(text: str, ignore: str) -> Findings:
    """Check that the image is pinned, its packages are locked, its sources exist and it does not run as root."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    sent = {line.removeprefix("!") for line in ignore.splitlines() if line.startswith("!")}
    bases = [line.partition("=")[2] for line in lines if line.startswith("ARG PYTHON=")]
    bases += [line.split()[1] for line in lines if line.startswith("FROM ") and "${PYTHON}" not in line]
    for base in bases:
        if not PINNED_IMAGE.fullmatch(base):
            yield f"Dockerfile: base image {base} has no full version"
    for line in lines:
        yield from (f"Dockerfile: {finding}" for finding in instruction(line.split(), sent))
    user = [line.split()[1] for line in lines if line.startswith("USER ")]
    if not user or user[-1].split(":")[0] in {"0", "root"}:
        yield "Dockerfile: runs as root"
    if ADDRESS.search(text):
        yield "Dockerfile: names an address"


def instruction(words: Sequence[str], sent: set[str]) -> Findings:
    """Check one instruction; `sent` is what .dockerignore lets through."""
    if words[0] == "COPY" and not words[1].startswith("--from="):
        for source in words[1:-1]:
            if not (ROOT / source).exists():
                yield f"copies {source}, which does not exist"
            elif source not in sent:
                yield f"copies {source}, which .dockerignore keeps out"
    if "pip" in " ".join(words) and "install" in words and "--require-hashes" not in words:
        yield "installs packages without their hashes"


def pom_file() -> Findings:
    """Read pom.xml and check it."""
    try:
        root = ET.parse(POM).getroot()  # noqa: S314 - our own file
    except ET.ParseError as error:
        yield f"pom.xml: {error}"
    else:
        yield from (f"pom.xml: {finding}" for finding in pom(root))


def pom_versions(root: ET.Element) -> Mapping[str, str]:
    """Return the `<name>.version` properties by name."""
    properties = root.find("m:properties", POM_NAMESPACE)
    assert properties is not None  # noqa: S101 - pom() says so in words
    return {entry.tag.rpartition("}")[2].removesuffix(".version"): entry.text or "" for entry in properties}


def pom(root: ET.Element) -> Findings:
    """Check that every artifact has one exact version and that no repository is named."""
    versions = pom_versions(root)
    for kind in ("dependency", "plugin"):
        for entry in root.iterfind(f".//m:{kind}", POM_NAMESPACE):
            name = entry.findtext("m:artifactId", namespaces=POM_NAMESPACE)
            given = entry.findtext("m:version", default="", namespaces=POM_NAMESPACE)
            version = versions.get(given.removeprefix("${").removesuffix(".version}"), given)
            if not PINNED_VERSION.fullmatch(version):
                yield f"{kind} {name} has no exact version"
    for kind in ("repository", "pluginRepository"):
        if root.find(f".//m:{kind}", POM_NAMESPACE) is not None:
            yield f"names a {kind}"


Unit = Mapping[str, Sequence[str]]


def unit_files() -> Findings:
    """Read the systemd units and check each."""
    found = {file.stem for file in UNITS.glob("*.service")}
    for name in sorted(INSTANCES.keys() ^ found):
        yield f"systemd: {name} is missing or unknown"
    for name in sorted(INSTANCES.keys() & found):
        text = (UNITS / f"{name}.service").read_text().replace("%i", INSTANCES[name])
        yield from (f"systemd: {name}: {finding}" for finding in unit(directives(text)))


def directives(text: str) -> Unit:
    """The values of each directive of a unit, in order, whatever its section."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, given, value = line.partition("=")
        if given and not line.startswith(("#", ";")):
            found.setdefault(name, []).append(value)
    return found


def unit(found: Unit) -> Findings:
    """Check that a service starts a command of the product, may end in time, keeps what it writes and may do little."""
    words = found.get("ExecStart", [""])[-1].split()
    environ = dict(pair.split("=", 1) for pair in found.get("Environment", ()))
    if words[1:2] != ["-m"] or words[2] not in MODELS:
        yield f"command {' '.join(words)} is not one of the product"
        return
    try:
        values = load(MODELS[words[2]], Surface(prefix=PREFIX, fields=all_fields()), environ=environ)
    except UsageError as error:
        yield str(error)
        return
    grace_s = getattr(values, "shutdown_grace_s", all_fields()["shutdown_grace_s"].default)
    if float(found.get("TimeoutStopSec", ["0"])[-1]) <= grace_s:
        yield f"is killed before DLR_SHUTDOWN_GRACE_S ({grace_s:g} s) has passed"
    if "2" not in found.get("RestartPreventExitStatus", [""])[-1].split():
        yield "starts again and again with a wrong setting"
    kept = f"/var/lib/{found.get('StateDirectory', [''])[-1]}"
    for name, value in environ.items():
        if name.endswith(("_DIR", "_PATH")) and not value.startswith(kept):
            yield f"{name}={value} is not in its StateDirectory"
    if found.get("User", ["root"])[-1] == "root":
        yield "runs as root"
    for name, value in HARDENING.items():
        if found.get(name) != [value]:
            yield f"{name} is not {value or 'empty'}"


def alerts_file() -> Findings:
    """Read the alert rules and check them."""
    known = set(METRIC.findall(CONTRACT.read_text().partition("## 12. ")[2]))
    explained = set(METRIC.findall(OPERATIONS.read_text()))
    yield from alerts(yaml.safe_load(ALERTS.read_text()), known, explained)


def alerts(rules: Mapping[str, Any], known: set[str], explained: set[str]) -> Findings:
    """Check that each rule asks for metrics that there are, and that somebody is told what to do.

    Args:
        rules: the parsed file.
        known: the metrics of the contract.
        explained: those of which docs/operations.md speaks.
    """
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        name, metrics = rule["alert"], set(METRIC.findall(rule["expr"]))
        for metric in sorted(metrics - known):
            yield f"alerts: {name}: docs/contract.md knows no {metric}"
        for metric in sorted((metrics & known) - explained):
            yield f"alerts: {name}: docs/operations.md does not say what to do about {metric}"
        if rule.get("labels", {}).get("severity") not in {"page", "ticket"}:
            yield f"alerts: {name}: has no severity"
        if not rule.get("annotations", {}).get("summary"):
            yield f"alerts: {name}: has no summary"


CHECKS: Final = (compose_schema, compose_file, dockerfile_file, pom_file, unit_files, alerts_file)

if __name__ == "__main__":
    sys.exit(main())
