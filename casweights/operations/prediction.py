"""Predict the size of the difference between two versions from their signatures.

A difference costs, for each element, to say whether it changes, and for those that do, by how many
steps. The samples tell both: which share of them differs, and how many floats lie in between. The
constants are fitted to differences between real models; docs/design/036 has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.format.rounding import is_rounded
from casweights.format.sampling import count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from casweights.format.dtypes import DType
    from casweights.format.sampling import Grid
    from casweights.format.signature import Signature

    Floats = NDArray[np.float64]
    Shape = tuple[int, int]

_TINY = 1e-12
_MOST_FROZEN = 0.99
_LEAST_PRIOR, _MOST_PRIOR = 8.0, 128.0  # samples that the share of all tensors counts for
_RELATED = 0.66  # of the bits of an element: tensors that differ in more are unrelated
_MOST_PAIRS = 1 << 16  # pairs of tensors of one shape that are compared
_WHOLE = {"BF16": 0.665, "F16": 0.85, "F32": 0.82, "F8_E4M3": 0.76, "F8_E5M2": 0.7}
_WHOLE_SHARE = 0.95  # of the bytes of other dtypes, stored whole
# Bits of an element: for whether it changes, for a change, and for each doubling of its steps.
_WHETHER, _CHANGE, _DOUBLING = 1.18, 1.8, 1.3
_LOWER = 1.35  # bits for each one that is below a sample and may change
# Bits of the mantissa beyond those of a sample; below 0, a step of the float is several of these.
_HIDDEN = {
    "F16": 3,
    "F32": 16,
    "C64": 16,
    "F64": 45,
    **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ"), -4),
    **dict.fromkeys(("F8_E5M2", "F8_E5M2FNUZ"), -5),
}


class Match(NamedTuple):
    """The best base of a tensor in another version.

    Attributes:
        tensor: Number of the tensor in its signature.
        base: Number of the other tensor in its own; None if none is worth it.
        nbytes: Predicted bytes of the difference, or else of the tensor stored whole.
    """

    tensor: int
    base: int | None
    nbytes: float


class _Pairs(NamedTuple):
    """Pairs of tensors of two signatures.

    Attributes:
        tensors: Numbers of the tensors of one.
        bases: Numbers of those of the other.
        changed: How many of their samples differ.
        steps: The sum of the logarithms of the steps between these, to the base 2.
    """

    tensors: NDArray[np.int64]
    bases: NDArray[np.int64]
    changed: Floats
    steps: Floats


class _Facts(NamedTuple):
    """What is known of tensors, or of those of pairs.

    Attributes:
        samples: The number of their samples.
        elements: The number of their elements.
        hidden: Bits of their mantissas that samples lack, or have in addition if it is below 0.
        bits: Bits of an element that samples show.
    """

    samples: Floats
    elements: Floats
    hidden: NDArray[np.int64]
    bits: NDArray[np.int64]


class _Group(NamedTuple):
    """The tensors of one shape in a signature: their numbers, and a row of samples for each."""

    numbers: list[int]
    samples: NDArray[np.int64]


def whole_size(grid: Grid) -> float:
    """Return the bytes that a tensor probably has stored whole."""
    share = _WHOLE.get(grid.dtype.code, _WHOLE_SHARE)
    return share * grid.elements * grid.dtype.width


def predict(
    ours: Signature, theirs: Signature, named: Mapping[int, int] | None = None
) -> list[Match]:
    """Predict the bytes of each tensor of a version as a difference from another version.

    Tensors of equal shape are compared, whatever their names.

    Args:
        ours: The signature of the version.
        theirs: The signature of the other version.
        named: The numbers of tensors of the same name, which count if others are no better.

    Returns:
        A match for each tensor of `ours`, in its order.
    """
    named, others = named or {}, _groups(theirs)
    pairs = [
        _pairs(group, others[shape], named)
        for shape, group in _groups(ours).items()
        if shape in others
    ]
    found = [Match(n, None, whole_size(grid)) for n, grid in enumerate(ours.grids)]
    if not pairs:
        return found
    joined = _Pairs(*(np.concatenate(columns) for columns in zip(*pairs, strict=True)))
    facts = _facts(ours.grids, joined.tensors)
    share, doublings, trained = _smoothed(joined, facts)
    bits = _bits(share, doublings + np.minimum(facts.hidden, 0)) * trained
    same = np.full(len(ours.grids), -1)
    same[list(named)] = list(named.values())
    order = np.lexsort((joined.bases, same[joined.tensors] != joined.bases, bits, joined.tensors))
    best = order[np.unique(joined.tensors[order], return_index=True)[1]]
    for at in best.tolist():
        tensor, base = int(joined.tensors[at]), int(joined.bases[at])
        grid, dtype = ours.grids[tensor], theirs.grids[base].dtype
        known, unknown = _lower_bits(grid.dtype, dtype, float(share[at]))
        most = 8.0 * grid.dtype.width
        size = min(float(bits[at] + trained[at] * known) + unknown, most) * grid.elements / 8
        whole = found[tensor].nbytes
        found[tensor] = Match(tensor, base if size < whole else None, min(size, whole))
    return found


def _facts(grids: Sequence[Grid], tensors: NDArray[np.int64]) -> _Facts:
    """Return what is known of the tensors of pairs."""
    return _Facts(
        np.array([count(grid) for grid in grids], float)[tensors],
        np.array([grid.elements for grid in grids], float)[tensors],
        np.array([_HIDDEN.get(grid.dtype.code, 0) for grid in grids])[tensors],
        np.array([min(16, 8 * grid.dtype.width) for grid in grids])[tensors],
    )


def _groups(signature: Signature) -> dict[Shape, _Group]:
    """Return the tensors of a signature by their rows and columns."""
    starts = np.cumsum([0, *(count(grid) for grid in signature.grids)])
    numbers: dict[Shape, list[int]] = {}
    for number, grid in enumerate(signature.grids):
        numbers.setdefault((grid.rows, grid.columns), []).append(number)
    groups = {}
    for shape, alike in numbers.items():
        size = count(signature.grids[alike[0]])
        at = starts[alike][:, None] + np.arange(size)
        is_float = np.array([is_rounded(signature.grids[n].dtype) for n in alike])
        groups[shape] = _Group(alike, _ordered(signature.values[at], is_float))
    return groups


def _ordered(samples: NDArray[np.uint16], is_float: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return numbers whose differences count the floats in between; other samples as they are."""
    numbers = samples.astype(np.int64)
    size = numbers & 0x7FFF
    signed = np.where(numbers & 0x8000, -size, size)
    return np.where(is_float[:, None], signed, numbers)


def _pairs(ours: _Group, theirs: _Group, named: Mapping[int, int]) -> _Pairs:
    """Compare tensors of one shape: all with all, unless there are very many."""
    own, other = np.arange(len(ours.numbers)), np.arange(len(theirs.numbers))
    if len(own) * len(other) <= _MOST_PAIRS:
        left, right = np.repeat(own, len(other)), np.tile(other, len(own))
    else:
        place = {number: at for at, number in enumerate(theirs.numbers)}
        left, right = own, np.minimum(own, len(other) - 1)
        same = [place.get(named.get(n, -1), int(right[at])) for at, n in enumerate(ours.numbers)]
        right = np.array(same)
    steps = np.abs(ours.samples[left] - theirs.samples[right])
    logs = np.log2(np.maximum(steps, 1)).sum(axis=1)
    return _Pairs(
        tensors=np.array(ours.numbers)[left],
        bases=np.array(theirs.numbers)[right],
        changed=(steps > 0).sum(axis=1).astype(float),
        steps=logs,
    )


def _smoothed(pairs: _Pairs, facts: _Facts) -> tuple[Floats, Floats, Floats]:
    """Return what the samples tell about each pair.

    Few samples say little, so that those of all tensors count, too, each with its best base.
    Tensors that are unrelated to this base do not count, and nothing else counts for them.

    Returns:
        The share of changed elements if the tensor is trained, the logarithm of their steps, and
        the probability that it is: none of the samples of a frozen tensor differ.
    """
    own = pairs.changed / facts.samples
    best = np.lexsort((pairs.steps, own, pairs.tensors))
    first = best[np.unique(pairs.tensors[best], return_index=True)[1]]
    steps = pairs.steps / np.maximum(pairs.changed, 1)
    related = _bits(own, steps + np.minimum(facts.hidden, 0)) < _RELATED * facts.bits
    first = first[related[first]] if related[first].any() else first
    samples = facts.samples[first]
    weight = facts.elements[first] / facts.elements[first].sum()
    mean = float((weight * own[first]).sum())
    # Of tensors that are all trained alike, these would have no sample that differs.
    by_chance = float((weight * (1 - mean) ** samples).sum())
    frozen = float((weight * (own[first] == 0)).sum()) - by_chance
    frozen = min(max(0.0, frozen / max(1 - by_chance, _TINY)), _MOST_FROZEN)
    mean = min(mean / (1 - frozen), 1.0)
    unmoved = (1 - frozen) * (1 - mean) ** facts.samples
    trained = np.where(own == 0, unmoved / np.maximum(frozen + unmoved, _TINY), 1.0)
    changes = weight * pairs.changed[first]
    usual = float((weight * pairs.steps[first]).sum()) / max(float(changes.sum()), _TINY)
    prior = _prior(pairs.changed[first], samples)
    share = (pairs.changed + prior * mean) / (facts.samples + prior)
    doublings = (pairs.steps + usual) / (pairs.changed + 1)
    return np.where(related, share, own), np.where(related, doublings, steps), trained


def _prior(changed: Floats, samples: Floats) -> float:
    """Return how many samples the share of all tensors counts for, with those of one of them.

    The more, the less the tensors differ from each other beyond what chance explains.
    """
    mean = float(changed.sum() / samples.sum())
    by_chance = samples * mean * (1 - mean)
    excess = float(((changed - samples * mean) ** 2).sum()) / max(float(by_chance.sum()), _TINY) - 1
    return float(np.clip(samples.mean() / max(excess, _TINY), _LEAST_PRIOR, _MOST_PRIOR))


def _bits(share: Floats, doublings: Floats) -> Floats:
    """Return the bits of an element of 16 bits in a difference."""
    p = np.clip(share, 1e-9, 1 - 1e-9)
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    bits: Floats = _WHETHER * entropy + p * (_CHANGE + _DOUBLING * np.maximum(doublings, 0))
    return bits


def _lower_bits(dtype: DType, base: DType, share: float) -> tuple[float, float]:
    """Return the bits of an element that a difference spends on what is rounded off in samples.

    Returns:
        What an element takes that is not the same, and what all take because the base lacks it.
    """
    lower = max(0, _HIDDEN.get(dtype.code, 0))
    known = min(lower, max(0, _HIDDEN.get(base.code, 0)))
    # The rarer a sample moves, the smaller are the steps below it.
    moved = float(np.log2(max(share, 2.0**-known))) if known else 0.0
    return min(known, _LOWER * (known + moved)), float(lower - known)
