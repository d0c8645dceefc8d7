"""The steps to expect, by the first bits of the mantissa.

Weight decay multiplies every element by the same number, so that elements without a gradient move
by a step that depends on their mantissa alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.kernels.reference.bits import varint
from casweights.kernels.reference.classes import LOG_BITS
from casweights.kernels.reference.differences import signs, steps_between
from casweights.kernels.reference.groups import (
    BLOCK,
    LEAST_BLOCKS,
    cells_cost,
    sample_stride,
    sampled,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.kernels.kinds import ElementKind
    from casweights.kernels.reference.bits import PayloadReader

_FIRST = 8  # bits of a mantissa on which the step to expect depends, at most
_LOWEST, _HIGHEST = -(1 << 31), (1 << 31) - 1


class Trend(NamedTuple):
    """How much the absolute values of elements are expected to grow, in units of the last place.

    Attributes:
        kind: The kind of the elements.
        first: The number of first bits of the mantissa that this depends on; 0 if nothing is
            expected.
        growth: For each value of these bits, an int64.
    """

    kind: ElementKind
    first: int
    growth: np.ndarray

    def expected(self, base: np.ndarray) -> np.ndarray:
        """Return the expected step of each element."""
        growth = self.growth.astype(f"<i{self.kind.width}").view(base.dtype)
        down = signs(base)
        steps: np.ndarray = (growth[_cells(base, self.kind, self.first)] ^ down) - down
        return steps

    def encode(self) -> bytes:
        """Return the trend as payloads store it."""
        steps = np.diff(self.growth, prepend=0).tolist() if self.first else []
        return bytes([self.first]) + b"".join(varint(n << 1 ^ n >> 63) for n in steps)


def no_trend(kind: ElementKind) -> Trend:
    """Return a trend that expects nothing."""
    return Trend(kind, 0, np.zeros(1, np.int64))


def read_trend(reader: PayloadReader, kind: ElementKind) -> Trend:
    """Read the trend of a payload.

    Raises:
        ValueError: The mantissa has fewer bits, or an expected step is too large.
    """
    first = reader.byte()
    if first > _FIRST or (first and first >= kind.mantissa):
        raise ValueError("its steps to expect are not valid")
    if not first:
        return no_trend(kind)
    growth, last = [], 0
    for _ in range(1 << first):
        more = reader.varint(1 << 33)
        last += more >> 1 ^ -(more & 1)
        if not _LOWEST <= last <= _HIGHEST:
            raise ValueError("its steps to expect are not valid")
        growth.append(last)
    return Trend(kind, first, np.array(growth))


def _cells(base: np.ndarray, kind: ElementKind, first: int) -> np.ndarray:
    """Return the first bits of each element's mantissa."""
    return (base >> (kind.mantissa - first)).astype(np.intp) & ((1 << first) - 1)


def choose_trend(
    base: np.ndarray,
    bits: np.ndarray,
    kind: ElementKind,
    count: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int]],
) -> Trend:
    """Choose the steps to expect from a sample.

    Args:
        base: Elements of the base.
        bits: Elements of the chunk.
        kind: The kind of the elements.
        count: Counts the cells of some elements, given their base and their steps; also returns
            their number of plain bits.

    Returns:
        The trend, which expects nothing if expecting something would not pay.
    """
    if kind.mantissa <= _FIRST or len(base) < LEAST_BLOCKS * BLOCK:
        return no_trend(kind)
    own = sampled(base).reshape(-1)
    moves = steps_between(own, sampled(bits).reshape(-1), kind)
    down = signs(own)
    growth = ((moves ^ down) - down).view(f"<i{kind.width}").astype(np.int64)
    cells = _cells(own, kind, _FIRST)
    votes = [_vote(growth[cells == cell]) for cell in range(1 << _FIRST)]
    trend = Trend(kind, _FIRST, np.array(votes, np.int64))
    without, instead = _cost(*count(own, moves)), _cost(*count(own, moves - trend.expected(own)))
    table = (16 << _FIRST << LOG_BITS) // sample_stride(len(base))
    return trend if without > instead + without // 256 + table else no_trend(kind)


def _cost(counts: np.ndarray, plain: int) -> int:
    return cells_cost(counts) + (plain << LOG_BITS)


def _vote(growth: np.ndarray) -> int:
    """Return the growth that wins the vote of elements whose mantissas begin alike.

    Each element that grew as much as the one before it votes: so noise does not vote, and few
    elements without it win. (The majority vote is that of Boyer and Moore.)
    """
    again = np.diff(growth, prepend=0) == 0
    winner, votes = 0, 0
    for vote in growth[again & (growth >= _LOWEST) & (growth <= _HIGHEST)].tolist():
        if vote == winner:
            votes += 1
        elif votes:
            votes -= 1
        else:
            winner = vote
    return winner
