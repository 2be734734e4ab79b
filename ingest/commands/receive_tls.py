"""TLS as the parent of the workers sees it: tells the operator what becomes of the certificates, once per command.

Every worker follows the files by itself; the parent counts and logs, so that the figures do not grow with the workers.
"""

from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from ingest.contract.settings import NetworkSettings, TlsSettings
from ingest.receiver.certificates import Certificates
from ingest.receiver.looks import is_open_to_all
from ingest.receiver.tls import Certificate, Pairs, Served, TlsFiles
from ingest.runtime.clock import Clock

log = structlog.get_logger(__name__)

EXPIRES_SOON_S: Final = 14 * 86_400.0
"""A certificate that lives no longer is warned of."""

MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""For workers that speak TLS. Each connection has a buffer of 256 KiB of which it touches as much as it needs; glibc
would soon give it memory that was touched before (mallopt(3), the dynamic threshold)."""

DAY_S: Final = 86_400


class CertificatesReport:
    """Says in log and metrics what becomes of the certificates.

    Args:
        registry: of the metrics.
        clock: says how long certificates still live.
        on_pairs: called with what is served from now on.
    """

    def __init__(self, registry: CollectorRegistry, clock: Clock, on_pairs: Callable[[Pairs], None]) -> None:
        self._clock = clock
        self._on_pairs = on_pairs
        self._told: dict[Certificate, str] = {}
        self._is_broken = self._is_late = False
        self._expiry = Gauge(
            "dlrflow_tls_certificate_expiry_timestamp_seconds",
            "When the served certificate of a file, or the first of its chain, ends.",
            ("file",),
            registry=registry,
        )
        self._broken = Gauge(
            "dlrflow_tls_files_broken",
            "1 while the certificate files cannot be used, or not be looked at for long, and those before are served; "
            "else 0.",
            registry=registry,
        )
        self._failures = Counter(
            "dlrflow_tls_files_failures_total",
            "Changes of the certificate files that made them unusable.",
            registry=registry,
        )
        self._reloads = Counter(
            "dlrflow_tls_reloads_total",
            "Changes of the certificate files that are served.",
            registry=registry,
        )

    def begun(self, served: Served) -> None:
        """This is served at the start."""
        self._hint(served)
        self.looked(served)

    def looked(self, served: Served) -> None:
        """Warn of each certificate once when its end is near, and once when it has come."""
        self._is_late = False
        self._show()
        now_s = self._clock.wall_ms() / 1000
        told: dict[Certificate, str] = {}
        for each in served.certificates:
            self._expiry.labels(str(each.file)).set(each.expires_at)
            left_s = each.expires_at - now_s
            if left_s > EXPIRES_SOON_S:
                continue
            told[each] = stage = "a certificate has expired" if left_s <= 0 else "a certificate expires soon"
            if self._told.get(each) != stage:
                log.warning(stage, file=str(each.file), kind=each.kind, days_left=round(left_s / DAY_S, 1))
        self._told = told

    def renewed(self, served: Served) -> None:
        """Other certificates are served from now on."""
        self._is_broken = False
        self._show()
        self._reloads.inc()
        self._on_pairs(served.pairs)
        log.info("certificates loaded", files=[str(each.file) for each in served.certificates])
        self._hint(served)

    def broken(self, why: str) -> None:
        """The files cannot be used; what was read before is served on."""
        self._is_broken = True
        self._show()
        self._failures.inc()
        log.error("the certificate files cannot be used: the certificates before them are served on", because=why)

    def late(self) -> None:
        """Nobody knows what the files hold now."""
        self._is_late = True
        self._show()

    def _show(self) -> None:
        self._broken.set(self._is_broken or self._is_late)

    def _hint(self, served: Served) -> None:
        for pair in served.pairs:
            if is_open_to_all(pair.key_file):
                log.warning("every user of this machine may read a private key of TLS", path=str(pair.key_file))


def tls_files(settings: TlsSettings) -> TlsFiles | None:
    """Where the settings say that certificates are; None: plain HTTP."""
    if not settings.tls_cert_files:
        return None
    return TlsFiles(certs=settings.tls_cert_files, keys=settings.tls_key_files, max_version=settings.tls_max_version)


def certificates(
    settings: TlsSettings, registry: CollectorRegistry, clock: Clock, on_pairs: Callable[[Pairs], None]
) -> Certificates | None:
    """The certificates of the settings, read; None if none are configured. One that has expired is served, loudly.

    Raises:
        UsageError: they cannot be used.
    """
    files = tls_files(settings)
    if files is None:
        return None
    report = CertificatesReport(registry, clock, on_pairs)
    loaded = Certificates(files, watcher=report)
    report.begun(loaded.served)
    return loaded


def warn_of_plain_http(tls: TlsSettings, networks: NetworkSettings, address: str) -> None:
    """Say that everybody on the way may read and change pushes, unless a proxy in front is known of.

    Args:
        tls: without certificates there is no TLS.
        networks: trusted proxies end it themselves.
        address: numeric, that the callback port listens on.
    """
    if tls.tls_cert_files or networks.trusted_proxies or ip_address(address.partition("%")[0]).is_loopback:
        return
    log.warning(
        "pushes come as plain HTTP: set DLR_TLS_CERT_FILES, or DLR_TRUSTED_PROXIES for a proxy that ends TLS",
        host=address,
    )
