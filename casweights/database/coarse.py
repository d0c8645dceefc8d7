"""Rank versions by their coarse rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.format.features import EMPTY
from casweights.format.signatures import COARSE_HASHES, COARSE_OFFSET, ROW_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from casweights.format.features import Features
    from casweights.format.signatures import Rows

_LEAST_SHARE = 1 / 8  # of the features that the best version shares
_LEAST = 2  # features: unrelated versions share one by chance
_MOST = 1024  # versions to choose from
_SLOTS = 1 << 16  # of a table of the low bits of hashes
_ROW = np.dtype(
    {
        "names": ["coarse"],
        "formats": [("<u4", COARSE_HASHES)],
        "offsets": [COARSE_OFFSET],
        "itemsize": ROW_SIZE,
    }
)


def join(objects: Iterable[Rows]) -> NDArray[np.uint32]:
    """Return the coarse rows of all versions in some objects, one after another."""
    tables = [np.frombuffer(rows.packed, _ROW)["coarse"] for rows in objects]
    return np.concatenate([np.empty((0, COARSE_HASHES), np.uint32), *tables])


def rank(own: Features, table: NDArray[np.uint32], most: int) -> list[int]:
    """Return the numbers of the versions that may be relatives, the most likely one first.

    A version counts for the features that it shares. Those that an earlier one has, too, count half
    for each of these, so that a version made of parts of several others finds all of them.

    Args:
        own: The features of the version whose relatives are sought.
        table: The coarse rows of all others.
        most: The number of versions to return at most.
    """
    likely = _likely(own, table)
    half = COARSE_HASHES // 2
    near = table[likely]
    kinds = ((own.exact, near[:, :half], 0), (own.rough, near[:, half:], len(own.exact)))
    places = [_places(features, hashes, start) for features, hashes, start in kinds]
    shared = np.concatenate(places, axis=1)  # numbers of own features, or -1
    counts = (shared >= 0).sum(axis=1)
    least = max(_LEAST, _LEAST_SHARE * int(counts.max(initial=0)))
    best = [n for n in np.argsort(-counts, kind="stable")[:_MOST].tolist() if counts[n] >= least]
    weights = np.ones(len(own.exact) + len(own.rough) + 1)
    weights[-1] = 0  # what -1 leads to
    ordered: list[int] = []
    while best and len(ordered) < most:
        at = int(np.argmax(weights[shared[best]].sum(axis=1)))
        weights[shared[best[at]]] /= 2
        ordered.append(int(likely[best.pop(at)]))
    return ordered


def _likely(own: Features, table: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the numbers of the versions that may share enough; nearly all others do not."""
    known = np.zeros(_SLOTS, np.bool_)
    for hashes in own:
        known[hashes % _SLOTS] = True
    counts = np.count_nonzero(known[table % _SLOTS], axis=1)
    return np.flatnonzero(counts >= _LEAST)


def _places(
    features: NDArray[np.uint32], hashes: NDArray[np.uint32], start: int
) -> NDArray[np.int64]:
    """Return the numbers of features from `start` on, in place of their hashes; others are -1."""
    if not len(features):
        return np.full(hashes.shape, -1)
    at = np.minimum(np.searchsorted(features, hashes), len(features) - 1)
    return np.where((features[at] == hashes) & (hashes != EMPTY), at + start, -1)
