"""Classes of elements by the exponent of the base, and the choice of their boundaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from casweights.kernels.kinds import ElementKind
    from casweights.kernels.reference.bits import PayloadReader

EXPONENTS = 256
_ENTRIES = 1024
LOG_BITS = 24  # fractional bits of a logarithm


class Classes(NamedTuple):
    """A division of the exponents.

    Attributes:
        first: The lowest exponent of each class; a class ends where the next one begins.
        of: The class of each exponent, an array of `EXPONENTS` uint8.
    """

    first: list[int]
    of: np.ndarray

    @classmethod
    def beginning_at(cls, first: list[int]) -> Classes:
        """Return the classes with these lowest exponents, the first of which is 0."""
        of = np.searchsorted(first, np.arange(EXPONENTS), "right") - 1
        return cls(first, of.astype(np.uint8))

    def encode(self) -> bytes:
        """Return the classes as payloads store them: their number, and all of `first` but its 0."""
        return bytes((len(self.first), *self.first[1:]))


def read_classes(reader: PayloadReader, kind: ElementKind, limit: int) -> Classes:
    """Read the classes of a payload.

    Raises:
        ValueError: There are no classes or more than `limit`, or their exponents do not ascend or
            are too large for the kind.
    """
    count = reader.byte()
    if not 1 <= count <= limit:
        raise ValueError("its number of classes is not valid")
    first = [0, *reader.take(count - 1)]
    top = min(255, (1 << (8 * kind.width - 1 - kind.mantissa)) - 1) if kind.mantissa else 0
    if first != sorted(set(first)) or first[-1] > top:
        raise ValueError("its classes are not in order")
    return Classes.beginning_at(first)


def choose_classes(counts: np.ndarray, limit: int, header: int) -> tuple[Classes, list[np.ndarray]]:
    """Choose classes: merge neighbouring exponents until every boundary saves enough bits.

    Args:
        counts: Number of occurrences of each symbol with each exponent, one row per exponent.
        limit: Maximum number of classes.
        header: Bits that a class costs in the payload.

    Returns:
        The classes, at least one, and the symbol counts of each.
    """
    first = np.flatnonzero(counts.any(axis=1)).tolist() or [0]
    groups = [counts[exponent] for exponent in first]
    growth = [_growth(*groups[n : n + 2]) for n in range(len(groups) - 1)]
    while growth:
        best = growth.index(min(growth))
        if len(groups) <= limit and growth[best] > header << LOG_BITS:
            break
        groups[best : best + 2] = [groups[best] + groups[best + 1]]
        del first[best + 1], growth[best]
        for n in range(max(best - 1, 0), min(best + 1, len(growth))):
            growth[n] = _growth(*groups[n : n + 2])
    return Classes.beginning_at([0, *first[1:]]), groups


def _growth(one: np.ndarray, other: np.ndarray) -> int:
    """Return how many more bits two groups of symbols need with common statistics, times 2^24."""
    return cost(one + other) - cost(one) - cost(other)


def cost(counts: np.ndarray) -> int:
    """Return the bits that symbols with these counts need (their entropy), times 2^24."""
    return int(_n_log2_n(counts.sum(keepdims=True))[0] - _n_log2_n(counts).sum())


def _n_log2_n(numbers: np.ndarray) -> np.ndarray:
    """Return n * log2(n), times 2^24, for numbers below 2^32."""
    n = np.maximum(numbers, 1).astype(np.int64)
    product: np.ndarray = n * log2(n)
    return product


def log2(n: np.ndarray) -> np.ndarray:
    """Return the binary logarithm, times 2^24, of numbers from 1 to below 2^32.

    The function uses integers alone, so that all machines choose the same classes.
    """
    exponent = np.frexp(n)[1].astype(np.int64) - 1
    fraction = (n << (42 - exponent)) - (1 << 42)
    entry, rest = fraction >> 32, (fraction & 0xFFFFFFFF) >> 16
    below, above = _LOGARITHMS[entry], _LOGARITHMS[entry + 1]
    log: np.ndarray = (exponent << LOG_BITS) + below + ((above - below) * rest >> 16)
    return log


def _logarithms() -> np.ndarray:
    """Return log2(1 + n / 1024), times 2^24, for n from 0 to 1024, by repeated squaring."""
    x = np.arange(_ENTRIES, 2 * _ENTRIES, dtype=np.uint64) << 21  # 31 fractional bits
    log = np.zeros(_ENTRIES, np.int64)
    for _ in range(LOG_BITS):
        x = x * x >> 31
        carry = x >> 32
        log = log << 1 | carry.astype(np.int64)
        x >>= carry
    return np.append(log, 1 << LOG_BITS)


_LOGARITHMS = _logarithms()
