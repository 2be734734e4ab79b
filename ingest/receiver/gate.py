"""Who may push: the two checks of the handler that look at the sender, with their counting and their log lines.

Both are None where nothing of the kind is configured, so that they cost nothing then. A sender decides how often it is
refused, so refusals are counted each, and told in the log once per reason and `LOG_EVERY_S`. A line holds the reason,
the peer's address (behind trusted proxies the one that they name), where the connection came from and the access key,
never signature or body.
"""

import re
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from ingest.contract.settings import AuthSettings, NetworkSettings
from ingest.receiver.keys import KeysFile
from ingest.receiver.peers import Peers, Refusal
from ingest.receiver.signature import NO_PROXY, NotAuthenticError, Proxy, Reason, Received, verify
from ingest.receiver.statuses import FORBIDDEN, NOT_AUTHENTIC, RefusedError
from ingest.runtime.clock import Clock

log = structlog.get_logger(__name__)

LOG_EVERY_S: Final = 10.0
"""Of each reason, so that nobody fills the disk with lines."""

SHOWN_CHARS_MAX: Final = 64
"""Of an access key, which is text of an unknown sender."""

FORWARDED: Final = "X-Forwarded-For"

_UNUSUAL = re.compile(r"[^A-Za-z0-9_-]")
_MS_PER_S = 1000


class GateMetrics:
    """Counts of refused senders, of one worker; each reason is there from the beginning."""

    def __init__(self, registry: CollectorRegistry) -> None:
        auth = Counter("dlrflow_auth_failures_total", "Pushes answered 401, by reason.", ("reason",), registry=registry)
        networks = Counter(
            "dlrflow_network_refusals_total", "Requests answered 403, by reason.", ("reason",), registry=registry
        )
        self.auth_failures = {reason: auth.labels(reason.value) for reason in Reason}
        self.network_refusals = {refusal: networks.labels(refusal.value) for refusal in Refusal}


class Seldom:
    """Lets a line of each kind pass once in a while. Kinds are a closed set."""

    def __init__(self, clock: Clock, every_s: float = LOG_EVERY_S) -> None:
        self._clock = clock
        self._every_s = every_s
        self._passed: dict[str, tuple[float, int]] = {}

    def passes(self, kind: str) -> int | None:
        """How many of the kind were held back since the last that passed; None: this one is held back."""
        now = self._clock.monotonic()
        at, held_back = self._passed.get(kind, (now - self._every_s, 0))
        if now - at < self._every_s:
            self._passed[kind] = (at, held_back + 1)
            return None
        self._passed[kind] = (now, 0)
        return held_back


class PeerGate:
    """403: the peer's network.

    Args:
        peers: tells who may push.
        metrics: of this worker.
        clock: of the log.
    """

    def __init__(self, peers: Peers, metrics: GateMetrics, clock: Clock) -> None:
        self._peers = peers
        self._metrics = metrics
        self._seldom = Seldom(clock)

    def is_foreign(self, remote: str) -> bool:
        """Whether a connection from this address is of no use to anybody."""
        return self._peers.is_foreign(remote)

    def check(self, request: web.BaseRequest) -> None:
        """Let a request pass.

        Raises:
            RefusedError: 403.
        """
        forwarded = request.headers.getall(FORWARDED, ())
        refusal = self._peers.refusal(request.remote, forwarded)
        if refusal is None:
            return
        self._metrics.network_refusals[refusal].inc()
        held_back = self._seldom.passes(refusal)
        if held_back is not None:
            log.warning(
                "refused a peer",
                reason=refusal.value,
                peer=_peer(self._peers, request),
                connected_from=request.remote,
                more_like_this=held_back,
            )
        raise RefusedError(FORBIDDEN)


class SignatureGate:
    """401: the signature.

    Args:
        keys: that count now.
        peers: tells who pushes, for the log.
        clock_skew_s: how far a date may be off.
        proxy: what it may have changed.
        metrics: of this worker.
        clock: of the check and the log.
    """

    def __init__(
        self, keys: KeysFile, peers: Peers, *, clock_skew_s: float, proxy: Proxy, metrics: GateMetrics, clock: Clock
    ) -> None:
        self._keys = keys
        self._peers = peers
        self._clock_skew_s = clock_skew_s
        self._proxy = proxy
        self._metrics = metrics
        self._clock = clock
        self._seldom = Seldom(clock)

    def check(self, request: web.BaseRequest, body: bytes) -> None:
        """Let a push pass.

        Raises:
            RefusedError: 401.
        """
        received = Received(method=request.method, target=request.raw_path, headers=request.raw_headers, body=body)
        try:
            verify(
                received,
                self._keys.secret_of,
                now_s=self._clock.wall_ms() / _MS_PER_S,
                clock_skew_s=self._clock_skew_s,
                proxy=self._proxy,
            )
        except NotAuthenticError as error:
            self._metrics.auth_failures[error.reason].inc()
            held_back = self._seldom.passes(error.reason)
            if held_back is not None:
                log.warning(
                    "refused a push that is not authentic",
                    reason=error.reason.value,
                    because=error.reason.words,
                    access_key=shown(error.access_key),
                    peer=_peer(self._peers, request),
                    connected_from=request.remote,
                    more_like_this=held_back,
                )
            raise RefusedError(NOT_AUTHENTIC) from None


@dataclass(frozen=True, slots=True)
class Gates:
    """The checks that are configured."""

    peers: PeerGate | None = None
    signatures: SignatureGate | None = None


OPEN: Final = Gates()
"""Everybody may push."""


def gates(
    auth: AuthSettings,
    networks: NetworkSettings,
    keys: KeysFile | None,
    *,
    registry: CollectorRegistry,
    clock: Clock,
) -> Gates:
    """The checks that settings ask for. Made once a process and registry.

    Args:
        auth: how signatures are checked.
        networks: who may push.
        keys: of the keys file, None if none is configured.
        registry: of the metrics.
        clock: of the checks and the log.
    """
    metrics = GateMetrics(registry)
    who = Peers(networks.allowed_networks, networks.trusted_proxies)
    peers = signatures = None
    if networks.allowed_networks:
        peers = PeerGate(who, metrics, clock)
    if keys is not None:
        signatures = SignatureGate(
            keys, who, clock_skew_s=auth.auth_clock_skew_s, proxy=proxy_of(auth), metrics=metrics, clock=clock
        )
    return Gates(peers, signatures)


def _peer(peers: Peers, request: web.BaseRequest) -> str | None:
    """Who pushes, for the log; None if that cannot be read."""
    peer = peers.peer(request.remote, request.headers.getall(FORWARDED, ()))
    return None if peer is None else str(peer)


def proxy_of(settings: AuthSettings) -> Proxy:
    """What settings say that a proxy may have changed."""
    proxy = Proxy(
        hosts=settings.auth_external_hosts,
        path_prefix=settings.auth_path_prefix,
        connection_values=settings.auth_connection_values,
    )
    return NO_PROXY if proxy == NO_PROXY else proxy


def shown(access_key: str) -> str:
    """An access key as it may stand in a log: short, and without anything unusual."""
    return _UNUSUAL.sub("?", access_key[:SHOWN_CHARS_MAX])
