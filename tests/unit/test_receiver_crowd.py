"""Who goes when there are too many. Pure."""

from dataclasses import dataclass, field

import pytest

from ingest.receiver.crowd import (
    FOREIGN_SHARE,
    GRACE_S,
    PEER_GRACE_S,
    WORTH_BYTES,
    Crowd,
    Guest,
    Limit,
    network_of,
)


@dataclass
class Door:
    """A crowd with a clock of its own, and what came of it."""

    most: int = 3
    most_of_peer: int = 0
    most_bytes: int = 4 * WORTH_BYTES
    now: float = 0.0
    evicted: list[str] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.crowd = Crowd(
            most=self.most,
            most_of_peer=self.most_of_peer,
            most_bytes=self.most_bytes,
            now=lambda: self.now,
            on_limit=self.limits.append,
            is_exempt=lambda peer: peer == "10.0.0.1",
            is_foreign=lambda peer: peer == "6.6.6.6",
        )

    def enter(self, name: str, peer: str = "") -> Guest:
        """Let one in who must get in."""
        guest = self.crowd.enter(peer or name, lambda: self.evicted.append(name))
        assert guest is not None
        return guest


def test_the_one_who_keeps_us_waiting_longest_goes_for_a_newcomer() -> None:
    """Not the one who came first: it has begun anew since."""
    door = Door()
    first, _, _ = (door.enter(name) for name in "abc")
    door.now = GRACE_S / 2
    door.crowd.waits(first)

    door.now = GRACE_S
    door.enter("d")

    assert door.evicted == ["b"]
    assert door.limits == [Limit.CONNECTIONS]
    assert len(door.crowd) == 3


def test_nobody_goes_within_the_grace_time() -> None:
    """Then there is no room, and the newcomer waits."""
    door = Door(most=1)
    door.enter("a")

    door.now = GRACE_S / 2
    assert not door.crowd.has_room()
    door.now = GRACE_S
    assert door.crowd.has_room()


def test_whom_we_keep_waiting_never_goes() -> None:
    """A push on its way to the disk is not the sender's delay."""
    door = Door(most=1)
    guest = door.enter("a")
    door.crowd.serves(guest)

    door.now = 100
    assert not door.crowd.has_room()
    assert door.crowd.enter("b", lambda: None) is None
    door.crowd.waits(guest)
    door.now = 101

    assert door.crowd.has_room()


def test_who_sends_ahead_does_not_begin_anew_with_each_answer() -> None:
    """Otherwise it could stay for ever."""
    door = Door(most=1)
    guest = door.enter("a")
    for _ in range(10):
        door.now += GRACE_S / 4
        door.crowd.serves(guest)
        door.crowd.resumes(guest)

    assert door.crowd.has_room()


def test_strangers_go_before_those_who_were_answered_success() -> None:
    """However long those are idle."""
    door = Door(most=2)
    known = door.enter("known")
    door.crowd.knows(known)
    door.now = 50
    door.enter("stranger")

    door.now = 60
    door.enter("next")
    door.enter("last")

    assert door.evicted == ["stranger", "known"]


def test_an_address_has_a_bound_of_its_own() -> None:
    """Its own longest-waiting goes, and if it has none, the newcomer is turned away; other addresses never notice."""
    door = Door(most=10, most_of_peer=2)
    for name in ("a", "b"):
        door.enter(name, "1.2.3.4")
    assert door.crowd.enter("1.2.3.4", lambda: None) is None

    door.now = PEER_GRACE_S
    door.enter("c", "1.2.3.4")
    door.enter("other", "1.2.3.5")

    assert door.evicted == ["a"]
    assert door.limits == [Limit.PEER, Limit.PEER_TURNED_AWAY, Limit.PEER]


def test_a_proxy_speaks_for_many() -> None:
    """Addresses inside DLR_TRUSTED_PROXIES have no bound of their own."""
    door = Door(most=10, most_of_peer=1)

    for name in "abc":
        door.enter(name, "10.0.0.1")

    assert len(door.crowd) == 3


def test_foreigners_go_first_and_without_grace() -> None:
    """Before a stranger that has waited for longer, and however new they are."""
    door = Door(most=2)
    door.enter("stranger")
    door.now = 50
    door.enter("foreigner", "6.6.6.6")

    door.enter("newcomer")

    assert door.evicted == ["foreigner"]
    assert door.limits == [Limit.CONNECTIONS]


def test_foreigners_take_nobodys_place() -> None:
    """All is full, and everybody has waited for long: a foreigner is turned away, whoever may push is let in."""
    door = Door(most=2)
    door.enter("a")
    door.enter("b")
    door.now = 50

    assert door.crowd.enter("6.6.6.6", lambda: None) is None
    assert (door.evicted, door.limits) == ([], [Limit.FOREIGN])


def test_foreigners_have_a_small_share() -> None:
    """Within it they have a second to say something; one that leaves makes room for another."""
    door = Door(most=2 * FOREIGN_SHARE)
    door.enter("first", "6.6.6.6")
    second = door.enter("second", "6.6.6.6")
    assert door.crowd.enter("6.6.6.6", lambda: None) is None

    door.now = GRACE_S
    door.enter("third", "6.6.6.6")
    door.crowd.leave(second)
    door.enter("fourth", "6.6.6.6")

    assert door.evicted == ["first"]
    assert door.limits == [Limit.FOREIGN, Limit.FOREIGN]
    assert len(door.crowd) == 2


def test_the_bound_of_one_address_holds_for_foreigners_too() -> None:
    """With its longer grace: one that hammers at the door is turned away."""
    door = Door(most=4 * FOREIGN_SHARE, most_of_peer=2)
    door.enter("a", "6.6.6.6")
    door.enter("b", "6.6.6.6")
    door.now = PEER_GRACE_S / 2

    assert door.crowd.enter("6.6.6.6", lambda: None) is None
    assert (door.evicted, door.limits) == ([], [Limit.PEER, Limit.PEER_TURNED_AWAY])
    door.now = PEER_GRACE_S
    door.enter("c", "6.6.6.6")
    assert door.evicted == ["a"]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ("what:ever", "what:ever"),
        ("", ""),
    ],
)
def test_a_peer_is_an_address_or_what_one_host_has(address: str, network: str) -> None:
    """With IPv6, one host takes any address of 64 bits."""
    assert network_of(address) == network


def test_memory_is_taken_back_from_those_who_keep_us_waiting() -> None:
    """Only from those where it helps, and only after the grace time."""
    door = Door()
    small, large, asking = (door.enter(name) for name in ("small", "large", "asking"))
    assert door.crowd.hold(small, WORTH_BYTES - 1)
    assert door.crowd.hold(large, 3 * WORTH_BYTES)

    assert not door.crowd.hold(asking, WORTH_BYTES)
    door.now = GRACE_S
    assert door.crowd.hold(asking, WORTH_BYTES)

    assert door.evicted == ["large"]
    assert door.crowd.held_bytes == 2 * WORTH_BYTES - 1
    assert not door.crowd.hold(large, 1)


def test_who_leaves_gives_back_all_that_it_held() -> None:
    """Twice is once."""
    door = Door(most_of_peer=1)
    guest = door.enter("a")
    door.crowd.hold(guest, 100)

    door.crowd.leave(guest)
    door.crowd.leave(guest)
    door.crowd.waits(guest)

    assert (len(door.crowd), door.crowd.held_bytes) == (0, 0)
    door.enter("a")
