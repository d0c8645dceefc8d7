"""Asymmetric numeral systems (rANS, arXiv 1311.2540), for many segments in parallel.

A segment's symbols are a column of a table, so one numpy operation codes a symbol of every segment.
A symbol's number includes its class: `SymbolTable` has the chances of all classes, concatenated. A
class has 4,096 slots, of which each symbol occupies as many as its chance; the lowest 12 bits of a
state are the slot of the next symbol.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SEGMENT = 1 << 14  # elements that share a state
CHANCE_BITS = 12
CHANCES = 1 << CHANCE_BITS
_LOWEST = 1 << 15  # states are from this value to below 65,536 times as much
_WORD_BITS = 16
_STATE_WORDS = 2  # words of the first state, before those of a segment's symbols


def scale_counts(counts: np.ndarray) -> np.ndarray:
    """Scale counts to a sum of `CHANCES`; counts above 0 stay above 0."""
    total = max(1, int(counts.sum()))
    chances: np.ndarray = np.maximum(counts * CHANCES // total, counts > 0)
    # The rounding error goes to the largest chance: a surplus one by one, so that none drops to 0.
    while rest := CHANCES - int(chances.sum()):
        chances[np.argmax(chances)] += max(rest, -1)
    return chances


class SymbolTable(NamedTuple):
    """Chances of symbols, and one more symbol that is certain, whose coding changes no state.

    Attributes:
        chance: The chance of each symbol, in 4,096ths.
        start: For each symbol, the sum of the chances before it in its class.
    """

    chance: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, classes: list[np.ndarray]) -> SymbolTable:
        """Return the table for these chances, one array for each class."""
        start = [np.cumsum(chances) - chances for chances in classes]
        columns = [*classes, np.array([CHANCES])], [*start, np.array([0])]
        return cls(*(np.concatenate(column).astype(np.uint32) for column in columns))

    @property
    def certain(self) -> int:
        """The symbol that is certain."""
        return len(self.chance) - 1

    def slots(self) -> np.ndarray:
        """Return the symbol of each slot, for the `CHANCES` slots of class after class."""
        return np.repeat(np.arange(len(self.chance)), self.chance)


def as_columns(values: np.ndarray, fill: int) -> np.ndarray:
    """Arrange values in one column for each segment; `fill` completes the last one."""
    segments = -(-len(values) // SEGMENT)
    rows = min(len(values), SEGMENT)
    filled = np.full(segments * rows, fill, values.dtype)
    filled[: len(values)] = values
    return np.ascontiguousarray(filled.reshape(segments, rows).T)


def from_columns(table: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` values of columns; the inverse of `as_columns`."""
    return table.T.reshape(-1)[:count]


def encode_segments(symbols: np.ndarray, table: SymbolTable) -> tuple[bytes, list[int]]:
    """Code columns of symbols.

    Returns:
        The words of all segments as bytes, and the number of words of each segment.
    """
    rows, segments = symbols.shape
    words = np.empty((_STATE_WORDS + rows, segments), "<u2")
    used = np.ones(words.shape, bool)
    state = np.full(segments, _LOWEST, np.uint32)
    for n in reversed(range(rows)):  # rANS codes backwards, so that decoding runs forwards
        chance, start = table.chance[symbols[n]], table.start[symbols[n]]
        full = state >= chance << (31 - CHANCE_BITS)
        words[_STATE_WORDS + n], used[_STATE_WORDS + n] = state & 0xFFFF, full
        quotient, rest = np.divmod(np.where(full, state >> _WORD_BITS, state), chance)
        state = (quotient << CHANCE_BITS) + start + rest
    words[0], words[1] = state >> _WORD_BITS, state & 0xFFFF
    return words.T[used.T].tobytes(), used.sum(axis=0).tolist()


def decode_segments(
    classes: np.ndarray, words: memoryview, counts: np.ndarray, table: SymbolTable
) -> np.ndarray:
    """Decode the words that `encode_segments` returned.

    Args:
        classes: Columns of the elements' classes.
        words: The words of all segments.
        counts: The number of words of each segment, at least 2.
        table: Chances of symbols.

    Returns:
        Columns of symbols.

    Raises:
        ValueError: The words do not decode to exactly this number of symbols.
    """
    slots = table.slots()
    chance = table.chance[slots]
    place = np.arange(len(slots), dtype=np.uint32) % CHANCES - table.start[slots]
    stream = np.frombuffer(bytes(words) + bytes(2 * SEGMENT), "<u2").astype(np.uint32)
    ends = np.cumsum(counts)
    at = ends - counts
    state = stream[at] << _WORD_BITS | stream[at + 1]
    at += _STATE_WORDS
    if (state < _LOWEST).any() or (state >> 31).any():
        raise ValueError("one of its states is not valid")
    taken = np.empty(classes.shape, np.uint32)
    for n in range(len(classes)):
        slot = classes[n] * CHANCES + (state % CHANCES)
        state = chance[slot] * (state >> CHANCE_BITS) + place[slot]
        low = state < _LOWEST
        state = np.where(low, state << _WORD_BITS | stream[at], state)
        at += low
        taken[n] = slot
    if (state != _LOWEST).any() or (at != ends).any():
        raise ValueError("its streams do not fit its elements")
    return slots[taken]
