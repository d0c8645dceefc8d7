"""How few bytes the difference of two bf16 states can take, under two models of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Entropies of one difference, in bytes; what the parameters themselves take is not counted.

    Attributes:
        elements: Elements of the state.
        changed: Those whose bits differ.
        places: Which ones changed, if all are equally likely to.
        values: By how many steps, independent of all else.
        class_places: Which ones changed, given tensor and exponent of the old element.
        class_values: By how many steps, given the exponent of the old element.
    """

    elements: int
    changed: int
    places: float
    values: float
    class_places: float
    class_values: float

    @property
    def memoryless(self) -> float:
        return self.places + self.values

    @property
    def conditional(self) -> float:
        return self.class_places + self.class_values


def bounds(base: dict[str, NDArray[np.uint16]], new: dict[str, NDArray[np.uint16]]) -> Bounds:
    """The bounds of the difference of two states, given as bit patterns of bf16."""
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
    """The exponent bytes of bf16 numbers."""
    return (bits >> 7).astype(np.uint8)


def ordered(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Map bit patterns of bf16 to integers that order as the numbers do."""
    return np.where(bits & 0x8000, ~bits, bits | 0x8000).astype(np.int64)


def zigzag(difference: NDArray[np.int64]) -> NDArray[np.int64]:
    """Small numbers of either sign as small numbers without one."""
    return difference << 1 ^ difference >> 63


def _bits(counts: NDArray[np.int64], total: Any) -> float:
    """The entropy of symbols that occur so often, times their number."""
    counts = counts[counts > 0]
    return float((counts * np.log2(total / counts)).sum())


def _binary(size: Any, count: Any) -> float:
    """The sum of n * H(k / n) over all pairs of n and k."""
    size, count = np.broadcast_arrays(np.asarray(size, float), np.asarray(count, float))
    bits = 0.0
    for part in (count, size - count):
        some = part > 0
        bits += float((part[some] * np.log2(size[some] / part[some])).sum())
    return bits
