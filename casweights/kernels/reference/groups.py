"""Groups of blocks whose elements change alike, each with classes and chances of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.kernels.reference.classes import LOG_BITS, cost, log2
from casweights.kernels.reference.range_coder import Chance, RangeDecoder, RangeEncoder

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

BLOCK = 128  # elements of a block, which are in one group
MAX_GROUPS = 4
LEAST_BLOCKS = 64  # fewer blocks are one group
_SAMPLED = 512  # blocks from which groups are learnt, at most
_ROUNDS = 4
_COST_BITS = 4  # fractional bits of a cost


def block_count(count: int) -> int:
    """Return the number of blocks of some elements; the last one may be incomplete."""
    return -(-count // BLOCK)


def sample_stride(count: int) -> int:
    """Return which blocks of some elements are sampled: every n-th of those that are complete."""
    return count // BLOCK // _SAMPLED + 4


def sampled(values: np.ndarray) -> np.ndarray:
    """Return the sampled blocks of an array, one in each row."""
    blocks: np.ndarray = values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return blocks[:: sample_stride(len(values))]


def choose_groups(cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Choose a group for each block.

    Args:
        cells: For each element, the number of tokens times its exponent, plus its token.
        shape: The number of exponents, and that of tokens.

    Returns:
        The groups, numbered from 0 without gaps.
    """
    blocks = block_count(len(cells))
    if len(cells) < LEAST_BLOCKS * BLOCK:
        return np.zeros(blocks, np.uint8)
    learner = _Learner(sampled(cells), shape)
    if not learner.pays(blocks, sample_stride(len(cells))):
        return np.zeros(blocks, np.uint8)
    step = _SAMPLED * BLOCK  # elements processed at a time, to bound memory
    of = np.concatenate(
        [_cheapest(learner.costs, cells[n : n + step]) for n in range(0, len(cells), step)]
    )
    return np.unique(of, return_inverse=True)[1].astype(np.uint8)


def _cheapest(costs: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return the group in which the cells of each block cost least."""
    starts = np.arange(0, len(cells), BLOCK)
    groups: np.ndarray = np.add.reduceat(costs[cells], starts, axis=0).argmin(axis=1)
    return groups


class _Learner:
    """Groups of a sample of blocks.

    Attributes:
        costs: The cost of each cell in each group, in 16ths of a bit; 0 for cells that the sample
            lacks.
    """

    def __init__(self, cells: np.ndarray, shape: tuple[int, int]) -> None:
        self._cells = cells
        self._shape = shape
        self._all = self._count(self._cells)
        self._groups, self.costs = self._learn()

    def _count(self, cells: np.ndarray) -> np.ndarray:
        exponents, tokens = self._shape
        return np.bincount(cells.reshape(-1), minlength=exponents * tokens).reshape(self._shape)

    def _learn(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the counts of each group's cells, and the costs that follow from them."""
        of = self._divide()
        for n in range(_ROUNDS):
            groups = [self._count(self._cells[of == g]) for g in range(MAX_GROUPS)]
            costs = np.stack([self._costs(counts).reshape(-1) for counts in groups], axis=1)
            if n + 1 < _ROUNDS:
                of = _cheapest(costs, self._cells.reshape(-1))
        return groups, costs

    def _divide(self) -> np.ndarray:
        """Divide the sample by how far elements moved, relative to others of the same exponent."""
        tokens = np.arange(self._shape[1])
        means = 16 * (self._all * tokens).sum(axis=1) // np.maximum(self._all.sum(axis=1), 1)
        scores = 16 * np.tile(tokens, self._shape[0]) - np.repeat(means, len(tokens))
        order = np.argsort(scores[self._cells].sum(axis=1), kind="stable")
        # Half of the blocks begin in the first group, a quarter in the second one, and so on.
        of = np.zeros(len(order), np.intp)
        left = len(order) // 2
        for _ in range(1, MAX_GROUPS):
            of[order[len(order) - left :]] += 1
            left //= 2
        return of

    def _costs(self, counts: np.ndarray) -> np.ndarray:
        of_all = log2(4 * counts.sum(axis=1, keepdims=True) + 16)
        costs: np.ndarray = (of_all - log2(4 * counts + 1)) >> (LOG_BITS - _COST_BITS)
        costs *= self._all > 0
        return costs

    def pays(self, blocks: int, stride: int) -> bool:
        """Return whether groups save more than they cost.

        They cost the bits of tables and of each block's group, and the bits that a sample seems to
        save because chances fit it by accident.
        """
        one, many = cells_cost(self._all), sum(cells_cost(counts) for counts in self._groups)
        used = sum(int((counts > 0).sum()) for counts in self._groups)
        used -= int((self._all > 0).sum())
        bits = blocks + used * (8 + stride)
        return one > many + one // 64 + (bits << LOG_BITS) // stride


def cells_cost(counts: np.ndarray) -> int:
    """Return the bits that the cells of all exponents need, given the exponents, times 2^24."""
    return sum(cost(row) for row in counts[counts.any(axis=1)])


class _Contexts(NamedTuple):
    """Chances of the bits of a block's group, given the group before."""

    bits: int
    chances: list[list[Chance]]

    @classmethod
    def of(cls, groups: int) -> _Contexts:
        chances = [[Chance() for _ in range(MAX_GROUPS)] for _ in range(MAX_GROUPS)]
        return cls((groups - 1).bit_length(), chances)


def encode_groups(of: np.ndarray, groups: int) -> bytes:
    """Code the group of each block."""
    coder, contexts, last = RangeEncoder(), _Contexts.of(groups), 0
    for group in of.tolist():
        node = 1
        for n in reversed(range(contexts.bits)):
            bit = group >> n & 1
            coder.put(contexts.chances[last][node], bit)
            node = node << 1 | bit
        last = group
    return coder.finish()


def decode_groups(data: Buffer, blocks: int, groups: int) -> np.ndarray:
    """Decode the group of each block; the inverse of `encode_groups`."""
    coder, contexts, last = RangeDecoder(data), _Contexts.of(groups), 0
    of = np.zeros(blocks, np.uint8)
    for block in range(blocks):
        node = 1
        for _ in range(contexts.bits):
            node = node << 1 | coder.get(contexts.chances[last][node])
        last = node - (1 << contexts.bits)
        if last >= groups:
            raise ValueError("one of its groups does not exist")
        of[block] = last
    if not coder.is_at_end():
        raise ValueError("its groups do not fit its elements")
    return of
