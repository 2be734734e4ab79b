"""Partitions are those of the Java client."""

import pytest

from ingest.runtime.partitioner import murmur2, murmur2_of, partitions_of

# org.apache.kafka.common.utils.UtilsTest.testMurmur2, signed there
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def signed(value: int) -> int:
    """The value as Java's int shows it."""
    return value - (1 << 32) if value >> 31 else value


@pytest.mark.parametrize(("key", "hashed"), JAVA.items())
def test_hashes_are_those_of_the_java_client(key: bytes, hashed: int) -> None:
    """The vectors of Kafka's own test come out."""
    assert signed(murmur2(key)) == hashed


def test_hashing_together_is_hashing_alone() -> None:
    """The vectors come out together, too, and a huge key among them changes nothing."""
    keys = [*JAVA, b"", b"x" * 1_000_000]

    assert murmur2_of(keys).tolist() == [murmur2(key) for key in keys]


def test_no_key_is_no_work() -> None:
    """An empty batch has no partitions."""
    assert partitions_of([], 12).tolist() == []


def test_keys_that_differ_in_trailing_zeros_differ() -> None:
    """Padding of the shorter ones is not taken for their bytes."""
    hashes = murmur2_of([b"ab", b"ab\0", b"ab\0\0", b"ab\0\0\0"])

    assert len(set(hashes.tolist())) == len(hashes)
