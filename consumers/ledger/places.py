"""A place: where the row of an entry stands in the journal, and whether the message waited then, in one number.

Generation number (23 bits), byte of the row (40 bits), waiting bit (1): it rises with the changelog. 0 is no place.
"""

import numpy as np
import numpy.typing as npt

WAITING_BIT = 1
_START_SHIFT = 1
_NUMBER_SHIFT = 41
_START_MASK = (1 << (_NUMBER_SHIFT - _START_SHIFT)) - 1

Places = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint64]
"""Halves of digests."""


def places_of(number: int, starts: npt.NDArray[np.int64], waiting: npt.NDArray[np.uint64]) -> Places:
    """The places of rows in one generation.

    Args:
        number: of the generation.
        starts: byte offsets of the rows.
        waiting: 1 where the message waits, else 0.
    """
    return np.uint64(least_of(number)) | (starts.astype(np.uint64) << np.uint64(_START_SHIFT)) | waiting


def least_of(number: int) -> int:
    """The least place that a row in this generation can have."""
    return number << _NUMBER_SHIFT


def numbers_of(places: Places) -> npt.NDArray[np.int64]:
    """The generations in which rows stand."""
    return (places >> np.uint64(_NUMBER_SHIFT)).astype(np.int64)


def starts_of(places: Places) -> npt.NDArray[np.int64]:
    """The byte offsets of rows in their generations."""
    return ((places >> np.uint64(_START_SHIFT)) & np.uint64(_START_MASK)).astype(np.int64)


def waits_in(places: Places) -> npt.NDArray[np.bool_]:
    """Where the message waited."""
    waiting: npt.NDArray[np.bool_] = (places & np.uint64(WAITING_BIT)) != 0
    return waiting
