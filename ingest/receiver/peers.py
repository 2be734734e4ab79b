"""Who pushes, and whether that network may (contract.md section 3).

Behind trusted proxies the peer is read from `X-Forwarded-For`, from the right: each proxy adds the address it was
called from at the end, so what stands left of the first address that is no trusted proxy may be anybody's invention.
Pure functions of texts.
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

HOPS_MAX: Final = 32
"""Trusted proxies in a row; no real chain is that long."""

CACHED_PEERS: Final = 4096
CACHED_CHARS_MAX: Final = 256
"""Bound the memory of answers: so many, to texts that are no longer."""

_MAPPED_BITS: Final = 96
"""Prefix length of ::ffff:0:0/96, in which IPv4 addresses stand in IPv6 ones (RFC 4291 section 2.5.5.2)."""

_BRACKETED: Final = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?")
_WITH_PORT: Final = re.compile(r"([^:]*):[0-9]{1,5}")


class Refusal(StrEnum):
    """Why a peer may not push; a closed set, the label of `dlrflow_network_refusals_total`."""

    NOT_ALLOWED = "not-allowed"
    UNREADABLE = "unreadable"


class Networks:
    """Networks of both kinds, asked quickly.

    Args:
        networks: IPv4 networks written as mapped IPv6 count as IPv4.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        plain = [_unmapped_network(network) for network in networks]
        self._spans: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for network in plain:
            span = (int(network.network_address), int(network.broadcast_address))
            self._spans[network.version].append(span)

    def __contains__(self, address: Address) -> bool:
        number = int(address)
        return any(first <= number <= last for first, last in self._spans[address.version])

    def __bool__(self) -> bool:
        return any(self._spans.values())


class Peers:
    """Tells who pushes and whether they may.

    Args:
        allowed: networks that may push; none: all.
        trusted: networks of proxies whose `X-Forwarded-For` counts.
    """

    def __init__(self, allowed: Iterable[Network], trusted: Iterable[Network]) -> None:
        self._allowed = Networks(allowed)
        self._trusted = Networks(trusted)
        self._is_trusted = lru_cache(CACHED_PEERS)(self._looks_trusted)
        self._cached_refusal = lru_cache(CACHED_PEERS)(self._decide)

    def refusal(self, remote: str | None, forwarded: Sequence[str]) -> Refusal | None:
        """Why a request is refused, None if it may pass.

        Args:
            remote: address of the connection, None if it has none.
            forwarded: the values of all `X-Forwarded-For` headers in their order.
        """
        if not self._allowed:
            return None
        remote = remote or ""
        said = ",".join(forwarded) if forwarded and self._is_trusted(remote) else None
        if len(said or "") > CACHED_CHARS_MAX:
            return self._decide(remote, said)
        return self._cached_refusal(remote, said)

    def is_foreign(self, remote: str) -> bool:
        """Whether no request of a connection from this address may pass, whatever it says: it is no proxy either."""
        return not self._is_trusted(remote) and self.refusal(remote, ()) is not None

    def peer(self, remote: str | None, forwarded: Sequence[str]) -> Address | None:
        """Who pushes; None if that cannot be read. Arguments as of `refusal`."""
        remote = remote or ""
        said = ",".join(forwarded) if forwarded and self._is_trusted(remote) else None
        return self._peer(remote, said)

    def _decide(self, remote: str, said: str | None) -> Refusal | None:
        peer = self._peer(remote, said)
        if peer is None:
            return Refusal.UNREADABLE
        return None if peer in self._allowed else Refusal.NOT_ALLOWED

    def _looks_trusted(self, remote: str) -> bool:
        address = read_address(remote)
        return address is not None and address in self._trusted

    def _peer(self, remote: str, said: str | None) -> Address | None:
        """The first address from the right that is no trusted proxy; the leftmost if all are."""
        if said is None:
            return read_address(remote)
        address: Address | None = None
        for _ in range(HOPS_MAX):
            said, comma, last = said.rpartition(",")
            address = read_address(last.strip(" \t"))
            if address is None or address not in self._trusted or not comma:
                return address
        return None


def read_address(text: str) -> Address | None:
    """An address as proxies write it, None if the text is none.

    Brackets, a port and the zone of a link-local address are left out; IPv4-mapped counts as IPv4.
    """
    match = _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text)
    try:
        address = ip_address(text if match is None else match[1])
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _unmapped_network(network: Network) -> Network:
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
