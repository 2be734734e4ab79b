"""Which partition a key belongs to, as the Java client's default partitioner decides it.

`toPositive(murmur2(key)) % partitions` (KIP-480; `org.apache.kafka.common.utils.Utils.murmur2`, seed 0x9747b28c). The
same key must meet the same partition from every client, or the parts of one message would be apart.

A loop over bytes in Python costs microseconds a key; `partitions_of` hashes many keys in step. Arrays wrap around at
32 bits as the hash wants.
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
_TOGETHER_BYTES_MAX = 256
"""Longer keys are hashed one by one, so that a single huge one does not make a huge table of all."""


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
    longest = int(lengths.max(initial=0))
    if longest <= _TOGETHER_BYTES_MAX:
        return _hash_together(keys, lengths, longest)
    hashes = np.empty(len(keys), dtype=np.uint32)
    short = np.flatnonzero(lengths <= _TOGETHER_BYTES_MAX)
    hashes[short] = murmur2_of([keys[at] for at in short.tolist()])
    for at in np.flatnonzero(lengths > _TOGETHER_BYTES_MAX).tolist():
        hashes[at] = murmur2(keys[at])
    return hashes


def _hash_together(keys: Sequence[bytes], lengths: NDArray[np.int64], longest: int) -> NDArray[np.uint32]:
    """Hash all keys word by word, the longest first: those that have a word at a step are a prefix of the rows."""
    width = longest // _WORD + 1
    rows = np.array(keys, dtype=f"S{width * _WORD}").view("<u4").reshape(len(keys), width)
    order = np.argsort(-lengths, kind="stable")
    words = np.ascontiguousarray(rows[order].T).astype(np.uint32, copy=False)
    lengths = lengths[order]
    whole = lengths // _WORD
    h = lengths.astype(np.uint32) ^ np.uint32(_SEED)
    for step, having in enumerate(np.searchsorted(-whole, -np.arange(width)).tolist()):
        k = words[step, :having]
        k *= _M
        k ^= k >> 24
        k *= _M
        h[:having] *= _M
        h[:having] ^= k
    rest = np.flatnonzero(lengths % _WORD)
    h[rest] = (h[rest] ^ words[whole[rest], rest]) * _M
    h ^= h >> 13
    h *= _M
    h ^= h >> 15
    hashes = np.empty_like(h)
    hashes[order] = h
    return hashes
