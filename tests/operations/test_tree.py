"""Trees: of all versions, which are stored as differences from which."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casweights.operations.differences import MAX_CHAIN_SHARE
from casweights.operations.tree import Rule, best, follow, grow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

WHOLE = np.full(4, 100.0)


class Points:
    """Versions that are points: what a difference takes is the way between two."""

    def __init__(self, places: NDArray[np.float64]) -> None:
        self._places = places
        self.near = {n: [m for m in range(len(places)) if m != n] for n in range(len(places))}

    def whole(self, version: int) -> NDArray[np.float64]:
        return WHOLE

    def difference(self, one: int, other: int) -> NDArray[np.float64]:
        way: NDArray[np.float64] = np.abs(self._places[one] - self._places[other])
        return way

    def is_known(self, one: int, other: int) -> bool:
        return True


def points(count: int, seed: int, reach: float) -> Points:
    """Return versions that were each made from an earlier one."""
    rng = np.random.default_rng(seed)
    places = np.zeros((count, len(WHOLE)))
    for n in range(1, count):
        places[n] = places[rng.integers(n)] + rng.uniform(-reach, reach, len(WHOLE))
    return Points(places)


def spent(versions: Points, above: dict[int, int | None]) -> list[float]:
    """Return the bytes of the differences that each version of a tree reads."""
    found: dict[int, float] = {}
    for version, base in above.items():
        own = 0.0 if base is None else float(versions.difference(version, base).sum())
        found[version] = own if base is None else own + found[base]
    return list(found.values())


def all_trees(count: int) -> Iterator[dict[int, int | None]]:
    """Yield every tree of a few versions, with each as the one that is whole."""
    for edges in combinations(list(combinations(range(count), 2)), count - 1):
        for root in range(count):
            above: dict[int, int | None] = {root: None}
            left = list(edges)
            while ready := [edge for edge in left if len(above.keys() & set(edge)) == 1]:
                one, other = ready[0]
                left.remove(ready[0])
                above |= {other: one} if one in above else {one: other}
            if len(above) == count:
                yield above


@pytest.mark.parametrize("seed", range(6))
def test_a_tree_is_nearly_the_best_one_that_keeps_to_the_limit(seed: int) -> None:
    versions = points(5, seed, reach=(10, 25, 40)[seed % 3])
    most = MAX_CHAIN_SHARE * WHOLE.sum()
    kept = [tree for tree in all_trees(5) if max(spent(versions, tree)) <= 0.97 * most]
    least = min(
        (sum(versions.difference(v, b).sum() for v, b in tree.items() if b is not None))
        for tree in kept
    ) + float(WHOLE.sum())
    found = best(versions, versions.near, range(5))
    assert found.nbytes <= 1.02 * least


@pytest.mark.parametrize(("count", "reach"), [(8, 2), (8, 30), (40, 10)])
def test_a_tree_has_all_versions_and_each_after_its_base(count: int, reach: float) -> None:
    versions = points(count, count, reach)
    smallest = grow(versions, versions.near, 0, Rule.NONE)
    found = best(versions, versions.near, range(count))
    assert found.above.keys() == smallest.above.keys() == set(range(count))
    if reach == 2:
        assert found.nbytes == pytest.approx(smallest.nbytes)
    order: Sequence[int] = list(found.above)
    assert all(b is None or order.index(b) < order.index(v) for v, b in found.above.items())


def test_the_whole_version_is_in_the_middle_of_a_line() -> None:
    """From its beginning, chains would be too long."""
    line = Points(np.outer(np.arange(9.0), np.full(len(WHOLE), 12.0)))
    near = {n: [m for m in (n - 1, n + 1) if 0 <= m < 9] for n in range(9)}
    found = best(line, near, range(9))
    assert found.above[4] is None
    assert found.nbytes == pytest.approx(WHOLE.sum() + 8 * 48)
    history = follow(line, {n: n - 1 if n else None for n in range(9)})
    assert history.nbytes > found.nbytes


def test_chunks_that_change_much_use_what_others_leave() -> None:
    """A version as a whole keeps to its share, though one of its chunks does not."""
    places = np.outer(np.arange(4.0), [30.0, 0, 0, 0])
    versions = Points(places)
    above = {0: None, 1: 0, 2: 1, 3: 2}
    assert grow(versions, {n: [n - 1] * (n > 0) + [n + 1] * (n < 3) for n in range(4)}, 0) == (
        above,
        490.0,
    )
    assert follow(versions, above).nbytes > 490
