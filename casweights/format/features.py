"""Features of samples: what versions that are relatives have in common.

A feature is a hash of the samples of one row of a tensor, and of its number of columns. Neither the
tensor's name nor its number of rows nor the row's number counts, so that tensors that were renamed,
or fused by rows, still have features in common. Of each row there are two: an exact one, which only
near relatives share, and a rough one of the leading bits, which survives long training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.format.rounding import is_rounded
from casweights.format.sampling import LEADING, positions
from casweights.format.signatures import COARSE_HASHES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from casweights.format.sampling import Grid

EMPTY = 0xFFFF_FFFF  # in place of a hash, where a version has fewer features
_EXACT = 3  # samples of an exact feature
_ROUGH_SHIFT = 5  # leaves sign, exponent and two bits of the mantissa
_FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)


class Features(NamedTuple):
    """Hashes of 32 bits, ascending, without repeats."""

    exact: NDArray[np.uint32]
    rough: NDArray[np.uint32]


def row_hashes(rows: NDArray[np.uint16], columns: int, salt: int) -> NDArray[np.uint32]:
    """Return a hash of each row of samples.

    Args:
        rows: The samples.
        columns: Number of columns of the tensor.
        salt: Tells features of different kinds apart.
    """
    mixed = np.full(len(rows), (columns << 1 | salt) % (1 << 64), np.uint64)
    for values in rows.T:
        mixed = (mixed ^ values) * _FACTOR  # modulo 2^64
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def features(grids: Sequence[Grid], values: NDArray[np.uint16]) -> Features:
    """Return the features of a version.

    Rows in which two of the samples are equal, such as constant ones, have none: unrelated
    versions share them. Neither have tensors of less than four columns.

    Args:
        grids: The sampled tensors.
        values: Their samples, tensor by tensor.
    """
    exact, rough = [], []
    for grid, rows in _rows_by_grid(grids, values):
        leading = rows[:, :LEADING]
        distinct = np.sort(leading[:, :_EXACT], axis=1)
        telling = leading[(distinct[:, 1:] != distinct[:, :-1]).all(axis=1)]
        exact.append(row_hashes(telling[:, :_EXACT], grid.columns, 0))
        if is_rounded(grid.dtype):
            rough.append(row_hashes(telling >> np.uint16(_ROUGH_SHIFT), grid.columns, 1))
    return Features(_unique(exact), _unique(rough))


def _rows_by_grid(
    grids: Sequence[Grid], values: NDArray[np.uint16]
) -> Iterable[tuple[Grid, NDArray[np.uint16]]]:
    """Yield the rows of samples of all tensors with the same rows, columns and dtype together."""
    starts: dict[Grid, list[int]] = {}
    total = 0
    for grid in grids:
        starts.setdefault(grid, []).append(total)
        total += positions(grid.rows, grid.columns).size
    for grid, first in starts.items():
        if grid.columns >= LEADING:
            places = positions(grid.rows, grid.columns)
            at = np.array(first)[:, None] + np.arange(places.size)
            yield grid, values[at].reshape(-1, places.shape[1])


def _unique(parts: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    found: NDArray[np.uint32] = np.unique(np.concatenate([np.empty(0, np.uint32), *parts]))
    known: NDArray[np.uint32] = found[found != EMPTY]
    return known


def coarse_row(found: Features) -> bytes:
    """Return the smallest features of each kind, little-endian, ascending, and padded."""
    half = COARSE_HASHES // 2
    row = np.full((2, half), EMPTY, "<u4")
    for n, hashes in enumerate(found):
        row[n, : min(half, len(hashes))] = hashes[:half]
    return row.tobytes()
