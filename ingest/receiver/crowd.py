"""Who is connected to one worker, what they hold in memory, and who must go when there are too many.

At a bound the newcomer is not refused: whoever has kept us waiting longest goes in its place, because a sender that
pushes once per connection has nothing but newcomers. Senders that were never answered success go first. Whom we keep
waiting (the push is on its way to the disk) never goes, and nobody goes within `GRACE_S`.

Foreigners (they may not push, whatever they say) have no such rights: they go first, at once, and have a small share.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import AddressValueError, IPv6Address
from typing import Final

GRACE_S: Final = 1.0
"""How long a sender may keep us waiting before it can be asked to go. An honest one sends with the last packet that
opens its connection, unless it or the network is busy: a push lost to a reset is worse than one that waits. When all is
full, as many newcomers as the bound on connections get in for each such time."""

PEER_GRACE_S: Final = 5.0
"""The same where an address has as many connections as it may: one that hammers at the door must not make us open and
close a thousand connections a second, which costs ten times as much as to turn it away."""

FOREIGN_SHARE: Final = 8
"""Foreigners have one of so many places, at least one: enough to be told 403, and not enough to be in the way."""

_HOST_BITS: Final = 64

WORTH_BYTES: Final = 16 * 1024
"""Held bytes from which on it helps the memory to send somebody away."""


class Limit(StrEnum):
    """What was reached; a closed set, the label of `dlrflow_limited_total`."""

    CONNECTIONS = "connections"
    PEER = "connections-of-peer"
    PEER_TURNED_AWAY = "connections-of-peer-turned-away"
    FOREIGN = "connections-foreign"
    DESCRIPTORS = "descriptors"
    MEMORY = "memory"
    HANDSHAKE_TIME = "handshake-time"
    HEAD_TIME = "head-time"
    HEAD_SIZE = "head-size"
    BODY_TIME = "body-time"
    BODY_SIZE = "body-size"
    FRAMING = "framing"
    ANSWER_TIME = "answer-time"
    IDLE_TIME = "idle-time"


@dataclass(slots=True, eq=False)
class Guest:
    """One accepted socket.

    Attributes:
        peer: address that it came from; of IPv6, the network of 64 bits, which is what one host has.
        evict: makes it go.
        since: loop time from which on its sender keeps us waiting.
        is_served: it is our turn.
        held: bytes of its requests in memory.
        known: it was answered success.
        gone: it counts no more.
        foreign: it may not push.
    """

    peer: str
    evict: Callable[[], None]
    since: float = 0.0
    is_served: bool = False
    held: int = 0
    known: bool = False
    gone: bool = False
    foreign: bool = False


class Crowd:
    """All guests of one worker.

    Args:
        most: guests at most.
        most_of_peer: guests from one address at most, 0: no bound.
        most_bytes: held by all of them at most.
        now: the event loop's time.
        on_limit: called with each limit that somebody reached.
        is_exempt: whether an address may have any number of guests: a proxy speaks for many.
        is_foreign: whether nothing that comes from an address may push.
    """

    def __init__(
        self,
        *,
        most: int,
        most_of_peer: int,
        most_bytes: int,
        now: Callable[[], float],
        on_limit: Callable[[Limit], None],
        is_exempt: Callable[[str], bool] = lambda _: False,
        is_foreign: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._most = most
        self._most_of_peer = most_of_peer
        self._most_bytes = most_bytes
        self._now = now
        self._most_foreign = max(1, most // FOREIGN_SHARE)
        self._is_exempt = is_exempt
        self._is_foreign = is_foreign
        self.on_limit = on_limit
        self._of_peer: Counter[str] = Counter()
        self._strangers: OrderedDict[Guest, None] = OrderedDict()
        self._known: OrderedDict[Guest, None] = OrderedDict()
        self._foreign: OrderedDict[Guest, None] = OrderedDict()
        self._open = 0
        self.held_bytes = 0
        """Of all guests together."""

    def __len__(self) -> int:
        return self._open

    def has_room(self) -> bool:
        """Whether one more may come in, if need be for one that keeps us waiting for too long."""
        return self._open < self._most or self._longest_waiting() is not None

    def evict_one(self) -> bool:
        """Make one guest go; False if none has kept us waiting for long enough."""
        return self._evict(self._longest_waiting())

    def enter(self, peer: str, evict: Callable[[], None]) -> Guest | None:
        """Let one in, for another if it must be; None if nobody goes for it: it should be closed at once."""
        foreign = self._is_foreign(peer)
        exempt = not self._most_of_peer or self._is_exempt(peer)
        peer = network_of(peer)
        if foreign and (len(self._foreign) >= self._most_foreign or self._open >= self._most):
            # It takes nobody's place but another one's.
            self.on_limit(Limit.FOREIGN)
            if not self._evict(_longest_waiting(self._foreign, self._now() - GRACE_S)):
                return None
        if self._of_peer[peer] >= self._most_of_peer and not exempt:
            self.on_limit(Limit.PEER)
            latest = self._now() - PEER_GRACE_S
            if not any(
                self._evict(_longest_waiting(waiting, latest, lambda other: other.peer == peer))
                for waiting in (self._foreign, self._strangers, self._known)
            ):
                self.on_limit(Limit.PEER_TURNED_AWAY)
                return None
        if self._open >= self._most:
            self.on_limit(Limit.CONNECTIONS)
            if not self.evict_one():
                return None
        guest = Guest(peer, evict, foreign=foreign)
        self._open += 1
        self._of_peer[peer] += 1
        self.waits(guest)
        return guest

    def leave(self, guest: Guest) -> None:
        """It is gone, with all that it held; calling twice is harmless."""
        if guest.gone:
            return
        guest.gone = True
        self._order(guest).pop(guest)
        self.release(guest, guest.held)
        self._open -= 1
        self._of_peer[guest.peer] -= 1
        if not self._of_peer[guest.peer]:
            del self._of_peer[guest.peer]

    def waits(self, guest: Guest) -> None:
        """From now on its sender keeps us waiting: for a head, a body, or for its answers to be taken."""
        if guest.gone:
            return
        guest.since = self._now()
        guest.is_served = False
        self._order(guest).move_to_end(guest)

    def serves(self, guest: Guest) -> None:
        """It is our turn."""
        guest.is_served = True

    def resumes(self, guest: Guest) -> None:
        """Not our turn any more, but it has waited for nobody: the time counts on from when it last did."""
        guest.is_served = False

    def _order(self, guest: Guest) -> OrderedDict[Guest, None]:
        """Those like it, by `since`; it is one of them from now on."""
        if guest.foreign:
            self._foreign.setdefault(guest)
            return self._foreign
        there, elsewhere = (self._known, self._strangers) if guest.known else (self._strangers, self._known)
        if guest not in there:
            elsewhere.pop(guest, None)
            there[guest] = None
        return there

    def knows(self, guest: Guest) -> None:
        """It was answered success."""
        if not guest.gone and not guest.known:
            guest.known = True
            guest.since = self._now()
            self._order(guest)

    def hold(self, guest: Guest, size: int) -> bool:
        """Count bytes as held; False, and not counted, if there is no room and nobody goes for it."""
        if guest.gone:
            return False
        while self.held_bytes + size > self._most_bytes:
            self.on_limit(Limit.MEMORY)
            if not self._evict(self._longest_waiting(lambda other: other.held >= WORTH_BYTES and other is not guest)):
                return False
        guest.held += size
        self.held_bytes += size
        return True

    def release(self, guest: Guest, size: int) -> None:
        """They are not held any more."""
        size = min(size, guest.held)
        guest.held -= size
        self.held_bytes -= size

    def _longest_waiting(self, is_wanted: Callable[[Guest], bool] = lambda _: True) -> Guest | None:
        """Who goes first, so that there is room for another one."""
        now = self._now()
        return (
            _longest_waiting(self._foreign, now, is_wanted)
            or _longest_waiting(self._strangers, now - GRACE_S, is_wanted)
            or _longest_waiting(self._known, now - GRACE_S, is_wanted)
        )

    def _evict(self, guest: Guest | None) -> bool:
        if guest is None:
            return False
        self.leave(guest)
        guest.evict()
        return True


def _longest_waiting(
    waiting: Iterable[Guest], latest: float, is_wanted: Callable[[Guest], bool] = lambda _: True
) -> Guest | None:
    """The first in their order that has kept us waiting since then or before."""
    for guest in waiting:
        if guest.since > latest:
            break
        if not guest.is_served and is_wanted(guest):
            return guest
    return None


def network_of(address: str) -> str:
    """What counts as one peer: an IPv4 address, mapped or not, or an IPv6 network of 64 bits."""
    if ":" not in address:
        return address
    try:
        parsed = IPv6Address(address)
    except AddressValueError:
        return address
    return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> _HOST_BITS << _HOST_BITS))
