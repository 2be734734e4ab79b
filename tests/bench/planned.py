"""Millions of messages by number: ids, segments, statuses and outcomes worked out from the number alone.

What was sent is never kept: any message can be sent again, or judged, at any time later.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

LONG_SHARE: Final = 0.1
"""Messages of two or three segments."""

FAILED_SHARE: Final = 0.05
SOON_SHARE: Final = 0.01
"""Reports that come again a moment later."""

OLD_SHARE: Final = 0.02
"""Reports that come again at any time later, as even over all that is remembered as can be."""

SEGMENTS_MAX: Final = 3
BLOCK_MESSAGES: Final = 20_000
"""The segments of a long message stand one block apart."""

OUTCOMES: Final = ("delivered", "failed", "partially_delivered")

Numbers = NDArray[np.uint64]

_SHIFTS: Final = (np.uint64(30), np.uint64(27), np.uint64(31))
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LENGTHS, _FAILED, _NAMES = 1, 8, 64  # which numbers are drawn for what
_VALUE: Final = (
    b'{"smsMsgId":"%b","total":"%d","sequence":"%d","status":"%b","source":"2",'
    b'"updateTime":"2026-11-23T%02d:%02d:%02dZ","orgCode":"000500","extend":"","to":"+861350%07d"}'
)


class Reports(NamedTuple):
    """Reports in the order in which they are sent: message and segment of each."""

    numbers: Numbers
    sequences: Numbers


@dataclass(slots=True)
class Sent:
    """What a plan has handed out so far.

    Attributes:
        applied: reports that tell something new.
        repeats: reports that were handed out before.
    """

    applied: int = 0
    repeats: int = 0

    @property
    def reports(self) -> int:
        """All of them."""
        return self.applied + self.repeats


def drawn(numbers: Numbers, salt: int) -> Numbers:
    """Even 64 bits for each number (splitmix64): the same for the same number and salt."""
    mixed = (numbers * np.uint64(256) + np.uint64(salt)) * _GOLDEN
    mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _FIRST
    mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _SECOND
    return mixed ^ (mixed >> _SHIFTS[2])


def _chance(numbers: Numbers, salt: int) -> NDArray[np.float64]:
    return drawn(numbers, salt) / 2.0**64


def totals(numbers: Numbers) -> NDArray[np.int64]:
    """How many segments each message has."""
    chance = _chance(numbers, _LENGTHS)
    return 1 + (chance < LONG_SHARE).astype(np.int64) + (chance < LONG_SHARE / 2)


def failed(reports: Reports) -> NDArray[np.bool_]:
    """Whether each report says UNDELIV in place of DELIVRD."""
    return _chance(reports.numbers * np.uint64(SEGMENTS_MAX + 1) + reports.sequences, _FAILED) < FAILED_SHARE


def outcomes(numbers: Numbers) -> NDArray[np.int64]:
    """What becomes of each message once it is complete: places in `OUTCOMES`."""
    lengths = totals(numbers)
    bad = np.zeros(len(numbers), np.int64)
    for sequence in range(1, SEGMENTS_MAX + 1):
        told = failed(Reports(numbers, np.full(len(numbers), sequence, np.uint64)))
        bad += told & (sequence <= lengths)
    return np.where(bad == 0, 0, np.where(bad == lengths, 1, 2))


def message_ids(numbers: Numbers) -> list[bytes]:
    """The `smsMsgId` of each: 32 hex digits that do not compress, `_`, and the number in eight digits."""
    halves = np.stack([drawn(numbers, _NAMES), drawn(numbers, _NAMES + 1)], axis=1)
    digits = halves.tobytes().hex().encode()
    return [b"%b_%08d" % (digits[32 * at : 32 * at + 32], number) for at, number in enumerate(numbers.tolist())]


def values(reports: Reports, ids: list[bytes]) -> list[bytes]:
    """The record values of reports whose ids are known."""
    statuses = [b"UNDELIV" if bad else b"DELIVRD" for bad in failed(reports).tolist()]
    lengths, sequences, numbers = totals(reports.numbers).tolist(), reports.sequences.tolist(), reports.numbers.tolist()
    return [
        _VALUE % (name, total, sequence, status, n // 3600 % 24, n // 60 % 60, n % 60, n % 10_000_000)
        for name, total, sequence, status, n in zip(ids, lengths, sequences, statuses, numbers, strict=True)
    ]


def blocks(messages: int, sent: Sent, *, seed: int) -> Iterator[Reports]:
    """All reports of the messages numbered from 0, repeats included, block by block; `sent` counts along."""
    random = np.random.default_rng(seed)
    count = -(-messages // BLOCK_MESSAGES)
    for block in range(count + SEGMENTS_MAX - 1):
        parts: list[Reports] = []
        for sequence in range(1, SEGMENTS_MAX + 1):
            numbers = _of_block(block - sequence + 1, messages)
            numbers = numbers[totals(numbers) >= sequence]
            parts.append(Reports(numbers, np.full(len(numbers), sequence, np.uint64)))
        sent.applied += sum(len(part.numbers) for part in parts)
        recent = _of_block(block - 1, messages)
        again = [
            random.choice(recent, int(len(recent) * SOON_SHARE), replace=False),
            any_of(min(messages, max(0, block - 1) * BLOCK_MESSAGES), int(len(recent) * OLD_SHARE), random),
        ]
        for numbers in again:
            parts.append(Reports(numbers, np.ones(len(numbers), np.uint64)))
            sent.repeats += len(numbers)
        order = random.permutation(sum(len(part.numbers) for part in parts))
        yield Reports(*(np.concatenate(column)[order] for column in zip(*parts, strict=True)))


def any_of(messages: int, count: int, random: np.random.Generator) -> Numbers:
    """So many messages among the first ones, all equally likely; none if there are none."""
    return random.integers(0, messages, count if messages else 0, np.uint64)


def _of_block(block: int, messages: int) -> Numbers:
    first = max(0, block * BLOCK_MESSAGES)
    after = min(messages, (block + 1) * BLOCK_MESSAGES)
    return np.arange(first, max(first, after), dtype=np.uint64)
