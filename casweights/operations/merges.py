"""Find the weights by which a version is the sum of two others, from the samples of all three."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.format.arithmetic import is_castable
from casweights.format.dtypes import DTYPES
from casweights.format.rounding import rounded
from casweights.format.sampling import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casweights.format.signature import Signature
    from casweights.operations.derivations import Weights

    Numbers = Sequence[int | None]
    Floats = NDArray[np.float32]

_LEAST_SAMPLES = 16  # in which the two differ; a wrong guess costs a trial of each chunk
_LEAST_EQUAL = 0.75  # share of them that the sum must explain
_MAX_LEFT = 0.5  # share that it may leave of what the nearer version alone does not explain
# The weights by which people merge.
_SHARES = (1 / 3, 2 / 3, *(n / 20 for n in range(1, 20)))


def sum_weights(ours: Signature, versions: Sequence[tuple[Signature, Numbers]]) -> Weights | None:
    """Return the weights by which two versions add up to another one.

    Args:
        ours: The samples of that version.
        versions: For each of the two, its samples, and the number in them of what each tensor of
            that version is like.

    Returns:
        The weights, which are F32 and add up to 1; None if it is no such sum.
    """
    alike = [
        n
        for n, grid in enumerate(ours.grids)
        if is_castable(grid.dtype)
        and all(_has_type(signature, numbers[n], grid.dtype) for signature, numbers in versions)
    ]
    if not alike:
        return None
    sums = _values(ours, alike)
    (one, other) = (_values(s, [numbers[n] or 0 for n in alike]) for s, numbers in versions)
    differ = (one != other) & np.isfinite(one) & np.isfinite(other)
    if np.count_nonzero(differ) < _LEAST_SAMPLES:
        return None
    # A fit would follow the largest values, whose rounding hides the differences.
    one, other, sums = one[differ], other[differ], sums[differ]
    equal = {share: _equal(one, other, sums, share) for share in _SHARES}
    best = max(equal, key=equal.__getitem__)
    alone = max(float(np.mean(version == sums)) for version in (one, other))
    if equal[best] < _LEAST_EQUAL or 1 - equal[best] > _MAX_LEFT * (1 - alone):
        return None
    return float(np.float32(1 - best)), float(np.float32(best))


def _has_type(signature: Signature, number: int | None, dtype: object) -> bool:
    return number is not None and signature.grids[number].dtype == dtype


def _values(signature: Signature, numbers: Sequence[int]) -> Floats:
    """Return the samples of some tensors as floats."""
    starts = np.cumsum([0, *(count(grid) for grid in signature.grids)])
    parts = [signature.values[starts[n] : starts[n + 1]] for n in numbers]
    return (np.concatenate(parts).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _equal(one: Floats, other: Floats, sums: Floats, share: float) -> float:
    """Return the share of samples that are the sum of the two others, rounded as samples are."""
    with np.errstate(over="ignore"):
        made = one * np.float32(1 - share) + other * np.float32(share)
    bits = rounded(made.astype(np.float32).view(np.uint32), DTYPES["F32"])
    return float(np.mean(bits == rounded(sums.view(np.uint32), DTYPES["F32"])))
