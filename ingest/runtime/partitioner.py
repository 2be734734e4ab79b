"""Which partition a key belongs to, as the Java client's default partitioner decides it.

`toPositive(murmur2(key)) % partitions` (KIP-480; `org.apache.kafka.common.utils.Utils.murmur2`, seed 0x9747b28c). The
same key must meet the same partition from every client, or the parts of one message would be apart.

A loop over bytes in Python costs microseconds a key; `partitions_of` hashes many keys in step, those of one length at
a time.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SEED = 0x9747B28C
_MIX = 0x5BD1E995
_MASK = 0xFFFF_FFFF
_POSITIVE = 0x7FFF_FFFF
_WORD = 4
_M = np.uint32(_MIX)


def murmur2(key: bytes) -> int:
    """Murmur2 of one key, unsigned 32 bits."""
    whole = len(key) - len(key) % _WORD
    h = _SEED ^ len(key)
    for at in range(0, whole, _WORD):
        k = int.from_bytes(key[at : at + _WORD], "little") * _MIX & _MASK
        h = h * _MIX & _MASK ^ (k ^ k >> 24) * _MIX & _MASK
    if whole < len(key):
        h = (h ^ int.from_bytes(key[whole:], "little")) * _MIX & _MASK
    h = (h ^ h >> 13) * _MIX & _MASK
    return h ^ h >> 15


def partition_of(key: bytes, count: int) -> int:
    """The partition of one key among `count`."""
    return (murmur2(key) & _POSITIVE) % count


def partitions_of(keys: Sequence[bytes], count: int) -> NDArray[np.int64]:
    """The partition of each key among `count`, in the order of the keys."""
    return (murmur2_of(keys) & np.uint32(_POSITIVE)).astype(np.int64) % count


def murmur2_of(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """Murmur2 of each key, in the order of the keys."""
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    if not len(keys):
        return np.empty(0, dtype=np.uint32)
    if (lengths == lengths[0]).all():
        return _same_length(b"".join(keys), int(lengths[0]), len(keys))
    hashes = np.empty(len(keys), dtype=np.uint32)
    order = np.argsort(lengths, kind="stable")
    bounds = np.flatnonzero(np.diff(lengths[order])) + 1
    for members in np.split(order, bounds):
        joined = b"".join([keys[at] for at in members.tolist()])
        hashes[members] = _same_length(joined, int(lengths[members[0]]), len(members))
    return hashes


def _same_length(joined: bytes, length: int, count: int) -> NDArray[np.uint32]:
    """Murmur2 of `count` keys of one length that stand one after the other; arrays wrap around as the hash wants."""
    padded = np.zeros((count, -(-length // _WORD) * _WORD), dtype=np.uint8)
    padded[:, :length] = np.frombuffer(joined, dtype=np.uint8).reshape(count, length)
    words = np.ascontiguousarray(padded.view("<u4").T).astype(np.uint32, copy=False)
    h = np.full(count, _SEED ^ length, dtype=np.uint32)
    for k in words[: length // _WORD]:
        k *= _M  # noqa: PLW2901 in place on an array of our own
        k ^= k >> 24  # noqa: PLW2901
        k *= _M  # noqa: PLW2901
        h *= _M
        h ^= k
    if length % _WORD:
        h ^= words[-1]
        h *= _M
    h ^= h >> 13
    h *= _M
    h ^= h >> 15
    return h
