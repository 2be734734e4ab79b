"""A blocked Bloom filter: one 64-bit word for each key, so that a probe costs one cache miss."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

BITS_PER_KEY = 12
"""With five bits in one word: about 2 of 100 absent keys pass."""

_WORD_BITS = 64
_ONE = np.uint64(1)
_SHIFTS = tuple(np.uint64(shift) for shift in (6, 12, 18, 24))
_LOW = np.uint64(_WORD_BITS - 1)
_HALF = np.uint64(32)


class Keys(NamedTuple):
    """Digests that are looked for in several filters: their halves, and their bits in any word."""

    high: Words
    low: Words
    bits: Words

    def at(self, indexes: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Keys":
        """Some of them."""
        return Keys(self.high[indexes], self.low[indexes], self.bits[indexes])


def keys_of(high: Words, low: Words) -> Keys:
    """Digests by their halves."""
    return Keys(high, low, _bits(low))


def words_for(keys: int) -> int:
    """How many words the filter of so many keys has; below 2**32."""
    return max(1, -(-keys * BITS_PER_KEY // _WORD_BITS))


def add(words: Words, high: Words, low: Words) -> None:
    """Put keys in. `high` must ascend: then keys of one word stand together."""
    if not len(high):
        return
    at = _word_of(high, len(words))
    starts = np.flatnonzero(np.concatenate(([True], at[1:] != at[:-1])))
    words[at[starts]] |= np.bitwise_or.reduceat(_bits(low), starts)


def probe(words: Words, keys: Keys) -> npt.NDArray[np.bool_]:
    """Which keys may be in; those that are, always."""
    passed: npt.NDArray[np.bool_] = (words[_word_of(keys.high, len(words))] & keys.bits) == keys.bits
    return passed


def _word_of(high: Words, count: int) -> npt.NDArray[np.int64]:
    return (((high >> _HALF) * np.uint64(count)) >> _HALF).astype(np.int64)


def _bits(low: Words) -> Words:
    bits = low & _LOW
    np.left_shift(_ONE, bits, out=bits)
    more = np.empty_like(bits)
    for shift in _SHIFTS:
        np.right_shift(low, shift, out=more)
        np.bitwise_and(more, _LOW, out=more)
        np.left_shift(_ONE, more, out=more)
        np.bitwise_or(bits, more, out=bits)
    return bits
