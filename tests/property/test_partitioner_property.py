"""Every client puts a key into the same partition."""

from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as clients_murmur2
from hypothesis import given
from hypothesis import strategies as st

from ingest.runtime.partitioner import murmur2, murmur2_of, partition_of, partitions_of

KEYS = st.binary(max_size=70) | st.binary(min_size=250, max_size=300)


@given(KEYS)
def test_one_key_hashes_as_in_the_client(key: bytes) -> None:
    """Our hash of a key is the client library's."""
    assert murmur2(key) == clients_murmur2(key)


@given(st.lists(KEYS, max_size=40))
def test_many_keys_hash_as_each_alone(keys: list[bytes]) -> None:
    """Hashing keys of any lengths together gives what each gives alone, in order."""
    assert murmur2_of(keys).tolist() == [clients_murmur2(key) for key in keys]


@given(st.lists(KEYS, max_size=10), st.integers(min_value=1, max_value=5000))
def test_keys_meet_the_partitions_of_the_client(keys: list[bytes], count: int) -> None:
    """The partition is the one that the client library's default partitioner chooses."""
    chosen = [DefaultPartitioner()(key, list(range(count)), []) for key in keys]

    assert partitions_of(keys, count).tolist() == chosen
    assert [partition_of(key, count) for key in keys] == chosen
