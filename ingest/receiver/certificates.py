"""The certificates of the callback port while it runs: read again when their files change.

Each new connection takes the context that is served at that moment, so a renewal is one assignment. The context is made
anew each time and swapped only when everything in it fits together and has held still for two looks: a file that is
half written, or a key that came before its certificate, changes nothing.
"""

import ssl
from collections.abc import Callable
from typing import NoReturn, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter

from ingest.receiver.looks import Followed, NotNowError, in_thread
from ingest.receiver.tls import Pairs, Served, TlsFiles, UnusableError, failure_reason, load
from ingest.runtime.clock import Clock
from ingest.runtime.errors import UsageError

log = structlog.get_logger(__name__)


class CertificatesWatcher(Protocol):
    """Is told what becomes of the files."""

    def looked(self, served: Served) -> None:
        """This is served now; after each look that succeeded."""
        ...

    def renewed(self, served: Served) -> None:
        """Other certificates are served from now on, or the files can be used again."""
        ...

    def broken(self, why: str) -> None:
        """The files cannot be used as they are now; once per content."""
        ...

    def late(self) -> None:
        """No look has succeeded for long; what is served may be out of date. Until `looked`."""
        ...


class Certificates:
    """What new connections get, kept up to date by `follow`.

    Args:
        files: where it comes from.
        pairs: what they held when it was last usable; read now if None.
        watcher: is told of changes; None where another process tells.

    Raises:
        UsageError: what is there at the start cannot be used; one line that names it.
    """

    def __init__(
        self, files: TlsFiles, pairs: Pairs | None = None, *, watcher: CertificatesWatcher | None = None
    ) -> None:
        self._files = files
        self._watcher = watcher
        try:
            self._served = load(files.read() if pairs is None else pairs, files.max_version)
        except (UnusableError, NotNowError) as error:
            raise UsageError(f"DLR_TLS_CERT_FILES, DLR_TLS_KEY_FILES: {error}") from None
        self._followed = Followed[Pairs | str](
            "DLR_TLS_CERT_FILES, DLR_TLS_KEY_FILES", read=self._read, take=self._take, taken=self._served.pairs
        )

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._served.context

    @property
    def served(self) -> Served:
        """All of what is served now."""
        return self._served

    async def follow(self, clock: Clock, on_look: Callable[[], None] = lambda: None) -> NoReturn:
        """Look at the files again and again; `on_look` is called after each look that succeeded."""

        def looked() -> None:
            if self._watcher is not None:
                self._watcher.looked(self._served)
            on_look()

        def late() -> None:
            if self._watcher is not None:
                self._watcher.late()

        await self._followed.follow(clock, on_look=looked, on_late=late)

    async def look(self) -> bool:
        """Look once, take over what the files hold if the look before found the same; returns whether it succeeded."""
        return await self._followed.look()

    async def _take(self, seen: Pairs | str) -> None:
        loaded = await in_thread(lambda: self._load(seen))
        if isinstance(loaded, str):
            if self._watcher is not None:
                self._watcher.broken(loaded)
            return
        self._served = loaded
        if self._watcher is not None:
            self._watcher.renewed(loaded)

    def _read(self) -> Pairs | str:
        """What the files hold, or why they cannot be read."""
        try:
            return self._files.read()
        except UnusableError as error:
            return str(error)

    def _load(self, seen: Pairs | str) -> Served | str:
        """What can be served with it, or why nothing can."""
        if isinstance(seen, str):
            return seen
        try:
            return load(seen, self._files.max_version)
        except UnusableError as error:
            return str(error)


class Handshakes:
    """Counts the handshakes of one worker. Built once a process and registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._done = Counter(
            "dlrflow_tls_handshakes_total",
            "Handshakes that succeeded, by version and suite.",
            ("version", "suite"),
            registry=registry,
        )
        self._failed = Counter(
            "dlrflow_tls_handshake_failures_total",
            "Handshakes that came to nothing, by reason (certificate: the sender refuses ours).",
            ("reason",),
            registry=registry,
        )
        self._refused_by_somebody = False

    def succeeded(self, connection: ssl.SSLObject) -> None:
        """Count one."""
        suite = connection.cipher()
        self._done.labels(connection.version() or "", suite[0] if suite else "").inc()

    def failed(self, error: BaseException) -> str:
        """Count one, and return the reason. Strangers make many of them: only what can be mended is logged, once."""
        reason = failure_reason(error)
        self._failed.labels(reason).inc()
        if reason == "certificate" and not self._refused_by_somebody:
            self._refused_by_somebody = True
            log.warning("a sender refuses our certificate; said once", because=getattr(error, "reason", None))
        else:
            log.debug("a TLS handshake failed", reason=reason, detail=str(error))
        return reason
