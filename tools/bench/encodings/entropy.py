"""Entropies of the difference of two bf16 states, under two models of the difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Entropies of one difference, in bytes, without the parameters of the models.

    Attributes:
        elements: Number of elements of the state.
        changed: Number of elements whose bits differ.
        places: Entropy of the positions, if all elements are equally likely to change.
        values: Entropy of the changes in steps of the last place, each independent of all else.
        class_places: Entropy of the positions, given tensor and exponent of the old element.
        class_values: Entropy of the changes, given the exponent of the old element.
    """

    elements: int
    changed: int
    places: float
    values: float
    class_places: float
    class_values: float

    @property
    def memoryless(self) -> float:
        """Entropy without knowledge of the elements."""
        return self.places + self.values

    @property
    def conditional(self) -> float:
        """Entropy given tensor and exponent."""
        return self.class_places + self.class_values


def bounds(base: dict[str, NDArray[np.uint16]], new: dict[str, NDArray[np.uint16]]) -> Bounds:
    """Return the entropies of the difference of two states, given as bit patterns of bf16."""
    sizes, counts, differences = [], [], []
    for name, old in base.items():
        changed = np.flatnonzero(old != new[name])
        exponents = exponent(old)
        sizes.append(np.bincount(exponents, minlength=CLASSES))
        counts.append(np.bincount(exponents[changed], minlength=CLASSES))
        steps = zigzag(ordered(new[name][changed]) - ordered(old[changed]))
        differences.append(exponents[changed].astype(np.int64) << 32 | steps)
    size, count, difference = np.stack(sizes), np.stack(counts), np.concatenate(differences)
    total, per_class = count.sum(), count.sum(0)
    steps_bits = _bits(np.unique(difference & 0xFFFFFFFF, return_counts=True)[1], total)
    joint_bits = _bits(np.unique(difference, return_counts=True)[1], total)
    return Bounds(
        elements=int(size.sum()),
        changed=int(total),
        places=_binary(size.sum(), total) / 8,
        values=steps_bits / 8,
        class_places=_binary(size, count) / 8,
        class_values=(joint_bits - _bits(per_class, total)) / 8,
    )


def exponent(bits: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return the exponents of bf16 numbers, as bytes."""
    return (bits >> 7).astype(np.uint8)


def ordered(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Map bit patterns of bf16 to integers that order as the numbers do."""
    return np.where(bits & 0x8000, ~bits, bits | 0x8000).astype(np.int64)


def zigzag(difference: NDArray[np.int64]) -> NDArray[np.int64]:
    """Map integers of small magnitude to small unsigned integers."""
    return difference << 1 ^ difference >> 63


def _bits(counts: NDArray[np.int64], total: Any) -> float:
    """Return the entropy of symbols with these counts, times their number, in bits."""
    counts = counts[counts > 0]
    return float((counts * np.log2(total / counts)).sum())


def _binary(size: Any, count: Any) -> float:
    """Return the sum of n * H(k / n) over all pairs of n (`size`) and k (`count`)."""
    size, count = np.broadcast_arrays(np.asarray(size, float), np.asarray(count, float))
    bits = 0.0
    for part in (count, size - count):
        some = part > 0
        bits += float((part[some] * np.log2(size[some] / part[some])).sum())
    return bits
