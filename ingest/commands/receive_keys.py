"""The keys file as the parent of the workers sees it: tells the operator what becomes of it, once per command.

Every worker follows the file by itself; the parent counts and logs, so that the figures do not grow with the workers.
"""

from collections.abc import Callable
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from ingest.contract.settings import PREFIX, AuthSettings, NetworkSettings
from ingest.receiver.keys import SETTING, Keys, KeysFile, keys_at_start
from ingest.receiver.looks import is_open_to_all

log = structlog.get_logger(__name__)


class KeysReport:
    """Says in log and metrics what becomes of the keys file.

    Args:
        path: of the file.
        registry: of the metrics.
        on_keys: called with the keys that count from now on.
    """

    def __init__(self, path: Path, registry: CollectorRegistry, on_keys: Callable[[Keys], None]) -> None:
        self._path = path
        self._on_keys = on_keys
        self._is_broken = self._is_late = False
        self._count = Gauge("dlrflow_auth_keys", "Access keys that may sign.", registry=registry)
        self._broken = Gauge(
            "dlrflow_auth_keys_file_broken",
            "1 while the keys file cannot be used, or not be looked at for long, and the keys before count on; else 0.",
            registry=registry,
        )
        self._failures = Counter(
            "dlrflow_auth_keys_file_failures_total",
            "Changes of the keys file that made it unusable.",
            registry=registry,
        )

    def begun(self, keys: Keys) -> None:
        """These keys count at the start."""
        self._count.set(len(keys.names()))
        self._hint()

    def changed(self, before: Keys, now: Keys) -> None:
        """Other keys count from now on."""
        self._count.set(len(now.names()))
        self._on_keys(now)
        log.info("the keys file has changed", path=str(self._path), **before.changes(now))
        self._hint()

    def broken(self, why: str) -> None:
        """The file cannot be used; what was read before counts on."""
        self._is_broken = True
        self._show()
        self._failures.inc()
        log.error("the keys file cannot be used: the keys before count on", path=str(self._path), because=why)

    def mended(self) -> None:
        """The file can be used again."""
        self._is_broken = False
        self._show()
        log.info("the keys file can be used again", path=str(self._path))

    def looked(self) -> None:
        """What counts is what the file held a moment ago, or was told to be broken."""
        self._is_late = False
        self._show()

    def late(self) -> None:
        """Nobody knows what the file holds now."""
        self._is_late = True
        self._show()

    def _show(self) -> None:
        self._broken.set(self._is_broken or self._is_late)

    def _hint(self) -> None:
        if is_open_to_all(self._path):
            log.warning("every user of this machine may read the keys file", path=str(self._path))


def keys_file(settings: AuthSettings, registry: CollectorRegistry, on_keys: Callable[[Keys], None]) -> KeysFile | None:
    """The keys file of the settings, read; None if none is configured.

    Raises:
        UsageError: it cannot be used.
    """
    path = settings.auth_keys_file
    if path is None:
        return None
    keys = keys_at_start(path)
    report = KeysReport(path, registry, on_keys)
    report.begun(keys)
    return KeysFile(path, keys, report)


def warn_of_doubtful(auth: AuthSettings, networks: NetworkSettings) -> None:
    """Say which settings do not do what their presence suggests."""
    if auth.auth_keys_file is None:
        for name, field in AuthSettings.model_fields.items():
            if getattr(auth, name) != field.default:
                log.warning("a setting has no effect", setting=PREFIX + name.upper(), without=SETTING)
    for network in networks.trusted_proxies:
        if network.prefixlen == 0:
            log.warning(
                "every sender may state its own address, because every address is a trusted proxy",
                setting=f"{PREFIX}TRUSTED_PROXIES",
                network=str(network),
            )
