"""Who pushes, and whether that network may: contract.md section 3, and what a forger would write."""

from ipaddress import ip_network

import pytest

from ingest.receiver import peers
from ingest.receiver.peers import HOPS_MAX, Peers, Refusal, read_address

PLATFORM = "117.78.29.0/24,2001:db8:1::/48"
PROXIES = "10.0.0.0/8,fd00::/8"


def a_check(allowed: str = PLATFORM, trusted: str = "") -> Peers:
    """A check of networks as settings write them."""
    return Peers(*([ip_network(text) for text in listed.split(",") if text] for listed in (allowed, trusted)))


@pytest.mark.parametrize(
    ("remote", "refusal"),
    [
        ("117.78.29.0", None),
        ("117.78.29.255", None),
        ("117.78.30.0", Refusal.NOT_ALLOWED),
        ("117.78.28.255", Refusal.NOT_ALLOWED),
        ("::ffff:117.78.29.7", None),
        ("::ffff:117.78.30.7", Refusal.NOT_ALLOWED),
        ("2001:db8:1:ffff::1", None),
        ("2001:db8:2::1", Refusal.NOT_ALLOWED),
        ("::117.78.29.7", Refusal.NOT_ALLOWED),
        (None, Refusal.UNREADABLE),
        ("", Refusal.UNREADABLE),
    ],
)
def test_only_allowed_networks_may_push(remote: str | None, refusal: Refusal | None) -> None:
    """IPv4, IPv6, and IPv4 in IPv6; both ends of a network belong to it."""
    assert a_check().refusal(remote, ()) == refusal


def test_without_allowed_networks_everybody_may() -> None:
    """Whatever is written in X-Forwarded-For."""
    assert a_check("", PROXIES).refusal("10.0.0.1", ("nonsense",)) is None
    assert a_check("", "").refusal(None, ()) is None


def test_a_network_may_be_written_as_mapped() -> None:
    """`::ffff:117.78.29.0/120` is 117.78.29.0/24, and `::/0` is every IPv6 address but no IPv4 one."""
    assert a_check("::ffff:117.78.29.0/120").refusal("117.78.29.9", ()) is None
    assert a_check("::ffff:117.78.29.0/120").refusal("117.78.30.9", ()) == Refusal.NOT_ALLOWED
    assert a_check("::/0").refusal("2001:db8::1", ()) is None
    assert a_check("::/0").refusal("117.78.29.9", ()) == Refusal.NOT_ALLOWED


@pytest.mark.parametrize(
    ("remote", "forwarded", "peer"),
    [
        ("10.0.0.1", ("117.78.29.7",), "117.78.29.7"),
        ("::ffff:10.0.0.1", ("117.78.29.7",), "117.78.29.7"),
        ("10.0.0.1", ("117.78.29.7, 10.0.0.2",), "117.78.29.7"),
        ("10.0.0.1", ("117.78.29.7", "10.0.0.2"), "117.78.29.7"),
        ("10.0.0.1", ("117.78.29.7,10.0.0.3", "10.0.0.2"), "117.78.29.7"),
        ("10.0.0.1", ("117.78.29.7 ,\t::ffff:10.0.0.2",), "117.78.29.7"),
        ("10.0.0.1", ("117.78.29.7:4711",), "117.78.29.7"),
        ("10.0.0.1", ("[2001:db8:1::7]:4711",), "2001:db8:1::7"),
        ("10.0.0.1", ("[2001:db8:1::7]",), "2001:db8:1::7"),
        ("fd00::1", ("2001:db8:1::7, [fd00::2]:80",), "2001:db8:1::7"),
        ("10.0.0.1", ("::ffff:117.78.29.7",), "117.78.29.7"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("10.0.0.9, 10.0.0.2",), "10.0.0.9"),
        ("8.8.8.8", ("117.78.29.7",), "8.8.8.8"),
    ],
)
def test_the_peer_is_the_first_from_the_right_that_is_no_proxy(
    remote: str, forwarded: tuple[str, ...], peer: str
) -> None:
    """All headers joined in order; counted only where the connection comes from a trusted proxy."""
    assert str(a_check(trusted=PROXIES).peer(remote, forwarded)) == peer


@pytest.mark.parametrize(
    ("remote", "forwarded"),
    [
        ("8.8.8.8", ("117.78.29.7",)),
        ("10.0.0.1", ("117.78.29.7, 8.8.8.8",)),
        ("10.0.0.1", ("117.78.29.7", "8.8.8.8")),
        ("10.0.0.1", ("117.78.29.7, 8.8.8.8, 10.0.0.2",)),
        ("10.0.0.1", ("117.78.29.7, 8.8.8.8:1",)),
        ("10.0.0.1", ("117.78.29.7, ::ffff:8.8.8.8",)),
        ("10.0.0.1", ("10.0.0.2, 10.0.0.3",)),
        ("10.0.0.1", ()),
    ],
)
def test_a_forged_address_does_not_help(remote: str, forwarded: tuple[str, ...]) -> None:
    """What the sender writes stands left of what the proxies add."""
    assert a_check(trusted=PROXIES).refusal(remote, forwarded) == Refusal.NOT_ALLOWED


@pytest.mark.parametrize(
    "said",
    [
        "unknown",
        "_hidden",
        "",
        ",",
        "117.78.29.7,",
        "117.78.29.7, ",
        "117.78.29.7, unknown, 10.0.0.2",
        "117.78.29",
        "117.78.29.007",
        "117.78.29.7:",
        "117.78.29.7:port",
        "117.78.29.7:999999",
        "[117.78.29.7",
        "[2001:db8:1::7]:",
        "[2001:db8:1::7]x",
        "117.78.29.7/24",
        "117.78.29.7 10.0.0.1",
        "for=117.78.29.7",
        "\u0661\u0661\u0667.78.29.7",
        "117.78.29.7\x00",
        "2001:db8:1::7:::",
    ],
)
def test_what_is_no_address_is_refused(said: str) -> None:
    """The proxy could not tell, or somebody tries something; what stands left of it does not count instead."""
    check = a_check(trusted=PROXIES)

    assert check.refusal("10.0.0.1", (said,)) == Refusal.UNREADABLE
    assert check.peer("10.0.0.1", (said,)) is None


def test_what_stands_left_of_the_peer_is_not_read() -> None:
    """However strange: the sender wrote it."""
    assert a_check(trusted=PROXIES).refusal("10.0.0.1", ("<script>, unknown, 117.78.29.7",)) is None


def test_a_chain_longer_than_any_real_one_is_refused() -> None:
    """So that a long header does not cost much."""
    check = a_check(trusted=PROXIES)

    assert check.refusal("10.0.0.1", ("117.78.29.7" + ",10.0.0.2" * (HOPS_MAX - 1),)) is None
    assert check.refusal("10.0.0.1", ("117.78.29.7" + ",10.0.0.2" * HOPS_MAX,)) == Refusal.UNREADABLE


def test_answers_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same peer is looked up once; long texts are not kept, and many do not grow the memory."""
    monkeypatch.setattr(peers, "CACHED_PEERS", 8)
    check = a_check(trusted=PROXIES)
    for _ in range(3):
        check.refusal("117.78.29.7", ())
        check.refusal("10.0.0.1", ("117.78.29.7" + ",10.0.0.2" * 30,))
    kept = check._cached_refusal.cache_info()
    for number in range(50):
        check.refusal(f"117.78.29.{number}", ())

    assert (kept.hits, kept.currsize) == (2, 1)
    assert check._cached_refusal.cache_info().currsize == 8


def test_zones_do_not_count() -> None:
    """A link-local address is the same over every interface, and its zone is text of somebody else."""
    assert str(read_address("fe80::1%eth0")) == "fe80::1"
    assert a_check("fe80::/10").refusal("fe80::1%2", ()) is None
