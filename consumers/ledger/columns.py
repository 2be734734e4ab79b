"""Digests and their places side by side in arrays, and how they are put in order and searched."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.ledger.places import Places, Words

Indexes = npt.NDArray[np.int64]

_WORD_BITS = 64


class Columns(NamedTuple):
    """Digests with their places."""

    high: Words
    low: Words
    places: Places


def joined(parts: Sequence[Columns]) -> Columns:
    """Several columns, one after the other."""
    return Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def order_of(high: Words, low: Words) -> Indexes:
    """The indexes that put digests in order; what comes twice stays in the order in which it came."""
    if not len(high):
        return np.zeros(0, np.int64)
    # The upper bits are sorted with the index in the place of the lower ones: much faster than sorting indexes.
    least = high.min()
    spare_bits = min(_WORD_BITS - int(high.max() - least).bit_length(), _WORD_BITS - 1)
    index_mask = np.uint64((1 << (len(high) - 1).bit_length()) - 1)
    keys = ((high - least) << np.uint64(spare_bits)) & ~index_mask
    keys |= np.arange(len(high), dtype=np.uint64)
    keys.sort()
    order: Indexes = (keys & index_mask).astype(np.int64)
    near = np.flatnonzero((keys[1:] ^ keys[:-1]) <= index_mask)
    one, next_one = order[near], order[near + 1]
    if ((high[one] != high[next_one]) | (low[one] != low[next_one])).any():  # the upper bits do not tell them apart
        order = np.lexsort((low, high)).astype(np.int64)
    return order


def ascending(columns: Columns) -> Columns:
    """Columns in the order of their digests; what comes twice stays in the order in which it came."""
    order = order_of(columns.high, columns.low)
    return Columns(*(column.take(order) for column in columns))


def firsts(high: Words, low: Words) -> Indexes:
    """Where in ordered columns another digest begins."""
    if not len(high):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate(([True], (high[1:] != high[:-1]) | (low[1:] != low[:-1]))))


def search(columns: Columns, high: Words, low: Words, left: Indexes) -> Places:
    """The place of each digest, 0 where it is not found.

    Args:
        columns: ascending.
        high: of the digests.
        low: of the digests.
        left: which of them to look for.
    """
    found = np.zeros(len(high), np.uint64)
    count = len(columns.high)
    at = np.searchsorted(columns.high, high[left])
    while left.size:
        inside = at < count
        left, at = left[inside], at[inside]
        near = columns.high[at] == high[left]
        same = near & (columns.low[at] == low[left])
        found[left[same]] = columns.places[at[same]]
        going = near & ~same  # digests that share their first half stand side by side
        left, at = left[going], at[going] + 1
    return found
