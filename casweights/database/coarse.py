"""Rank versions by their coarse rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.format.features import EMPTY
from casweights.format.signatures import COARSE_HASHES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casweights.format.features import Features

_LEAST_SHARE = 1 / 8  # of the features that the best version shares
_LEAST = 2  # features: unrelated versions share one by chance
_MOST = 1024  # versions to choose from


def rank(own: Features, rows: Sequence[bytes], most: int) -> list[int]:
    """Return the numbers of the versions that may be relatives, the most likely one first.

    A version counts for the features that it shares. Those that an earlier one has, too, count half
    for each of these, so that a version made of parts of several others finds all of them.

    Args:
        own: The features of the version whose relatives are sought.
        rows: The coarse rows of all others.
        most: The number of versions to return at most.
    """
    table = np.frombuffer(b"".join(rows), "<u4").reshape(len(rows), COARSE_HASHES)
    half = COARSE_HASHES // 2
    kinds = ((own.exact, table[:, :half], 0), (own.rough, table[:, half:], len(own.exact)))
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
        ordered.append(best.pop(at))
    return ordered


def _places(
    features: NDArray[np.uint32], hashes: NDArray[np.uint32], start: int
) -> NDArray[np.int64]:
    """Return the numbers of features from `start` on, in place of their hashes; others are -1."""
    if not len(features):
        return np.full(hashes.shape, -1)
    at = np.minimum(np.searchsorted(features, hashes), len(features) - 1)
    return np.where((features[at] == hashes) & (hashes != EMPTY), at + start, -1)
