"""Fetches what the local services run, once per machine and version, by Maven.

The folder is `var/cache` of the repository, or `DLRFLOW_CACHE_DIR`. Processes that want the same thing at once wait for
the one that fetches; what is not complete has no stamp and is fetched anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from deploy.local.processes import LocalServiceError

POM: Final = Path(__file__).with_name("pom.xml")
POM_NAMESPACE: Final = {"m": "http://maven.apache.org/POM/4.0.0"}
STAMP: Final = ".complete"
FETCH_TIMEOUT_S: Final = 900


def cache_dir() -> Path:
    """Return the cache folder, made if missing."""
    named = os.environ.get("DLRFLOW_CACHE_DIR")
    folder = Path(named) if named else POM.parents[2] / "var" / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def version(name: str) -> str:
    """Return the version that pom.xml pins under the property `<name>.version`."""
    properties = ET.parse(POM).find("m:properties", POM_NAMESPACE)  # noqa: S314 - our own file
    found = None if properties is None else properties.findtext(f"m:{name}.version", namespaces=POM_NAMESPACE)
    if found is None:
        raise LocalServiceError(f"{POM} has no property {name}.version")
    return found


def fetched(profile: str, unpack: Callable[[Path], None] | None = None) -> Path:
    """Return a folder with the jars of one profile of pom.xml, fetched if they are not there yet.

    Args:
        profile: `kafka` or `postgres`.
        unpack: called with the new folder before it counts as complete.

    Raises:
        LocalServiceError: Maven is missing or fails.
    """
    folder = cache_dir() / f"{profile}-{version(profile)}"
    stamp = folder / STAMP
    pom = hashlib.sha256(POM.read_bytes()).hexdigest()
    if _read(stamp) == pom:
        return folder
    with locked(profile):
        if _read(stamp) == pom:
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        _copy_dependencies(profile, folder)
        if unpack is not None:
            unpack(folder)
        stamp.write_text(pom)
    return folder


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Let only one process on this machine into the block; the others wait."""
    with (cache_dir() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(stamp: Path) -> str | None:
    try:
        return stamp.read_text()
    except FileNotFoundError:
        return None


def _copy_dependencies(profile: str, folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise LocalServiceError(f"Maven is needed to fetch {profile} once: install `mvn`, or name a running service")
    print(f"fetching {profile} {version(profile)} into {folder}", file=sys.stderr)
    command = [maven, "--batch-mode", "--quiet", "--file", str(POM), "--activate-profiles", profile]
    command += ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise LocalServiceError(f"Maven did not fetch {profile} within {FETCH_TIMEOUT_S} s") from None
    if done.returncode != 0:
        complaint = next((line for line in done.stdout.splitlines() if "ERROR" in line), done.stderr.strip())
        raise LocalServiceError(f"Maven could not fetch {profile}: {complaint}")
