"""Which versions are stored as differences from which, where all of them are known: a tree.

What differences take is measured before. The smallest tree may have long chains, and reading a
version must not take much more than a whole one. So versions are added one by one, those that take
least first, and a chunk whose chain would be too long counts as what is stored instead. This is
Prim's algorithm, but for the limit.

Sizes are those of a few chunks, the same ones of each version. This module reads nothing.
"""

from __future__ import annotations

import heapq
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from casweights.operations.differences import (
    MAX_CHAIN_SHARE,
    MAX_DIRECT_SHARE,
    MAX_TENSOR_SHARE,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    Sizes = NDArray[np.float64]
    Near = Mapping[int, Collection[int]]

_MARGIN = 0.97  # of a version's share, since only some of its chunks are measured
_MOST_ROOTS = 32  # versions that are tried as the one that is whole


class Rule(Enum):
    """What limits the differences of chains.

    Attributes:
        NONE: Nothing.
        CHUNKS: Those of each chunk take at most their share, as a writer sees to.
        VERSIONS: Those of all chunks of a version together do, or of each chunk.
    """

    NONE = auto()
    CHUNKS = auto()
    VERSIONS = auto()


class Measured(Protocol):
    """What versions take, by their numbers: the bytes of each of a few chunks."""

    def whole(self, version: int) -> Sizes:
        """Return what the chunks of a version take whole."""

    def difference(self, one: int, other: int) -> Sizes:
        """Return what those of one version take as differences from another, either way."""

    def is_known(self, one: int, other: int) -> bool:
        """Whether the difference between two versions was measured before."""


class Tree(NamedTuple):
    """Versions that are stored as differences from each other.

    Attributes:
        above: The version that each is a difference from, which comes before it; None for whole.
        nbytes: What all of them take.
    """

    above: Mapping[int, int | None]
    nbytes: float


class _Chains(NamedTuple):
    """The chains of the chunks of a version.

    Attributes:
        roots: The versions whose whole chunks they begin with.
        spent: The bytes of their differences.
    """

    roots: NDArray[np.int64]
    spent: Sizes


class _Growing:
    """Trees to which versions are added.

    Args:
        measured: What versions take.
        rule: What limits chains.
    """

    def __init__(self, measured: Measured, rule: Rule) -> None:
        self._measured = measured
        self._rule = rule
        self._chains: dict[int, _Chains] = {}
        self.above: dict[int, int | None] = {}
        self.nbytes = 0.0

    def begin(self, version: int) -> None:
        """Add a version that is whole."""
        whole = self._measured.whole(version)
        self._chains[version] = _Chains(np.full(len(whole), version), np.zeros(len(whole)))
        self.above[version] = None
        self.nbytes += float(whole.sum())

    def price(self, version: int, above: int) -> tuple[float, _Chains]:
        """Return what a version takes as a difference from one of the tree, and its chains.

        A writer decides alike, with the sizes of all chunks: `DifferenceEncoder`.
        """
        roots, spent = self._chains[above]
        sizes, whole = self._measured.difference(version, above), self._measured.whole(version)
        total = spent + sizes
        fits = sizes <= MAX_DIRECT_SHARE * whole
        if not self._has_room(np.where(fits, total, 0.0), whole):
            fits &= (total <= MAX_CHAIN_SHARE * whole) | (roots == above)
            for root in np.unique(roots[~fits & (roots != above)]).tolist():
                # While trees are compared, each would ask for other pairs.
                if self._rule is Rule.VERSIONS and not self._measured.is_known(version, root):
                    continue
                direct = self._measured.difference(version, root)
                better = ~fits & (roots == root) & (direct <= MAX_CHAIN_SHARE * whole)
                sizes, total = np.where(better, direct, sizes), np.where(better, direct, total)
                fits |= better
        chains = _Chains(np.where(fits, roots, version), np.where(fits, total, 0.0))
        return float(np.where(fits, sizes, whole).sum()), chains

    def _has_room(self, total: Sizes, whole: Sizes) -> bool:
        """Whether a version keeps to its share as a whole, though some of its chunks may not."""
        if self._rule is Rule.CHUNKS:
            return False
        if self._rule is Rule.NONE:
            return True
        most = _MARGIN * MAX_CHAIN_SHARE * whole.sum()
        return bool(total.sum() <= most and (total <= MAX_TENSOR_SHARE * whole).all())

    def add(self, version: int, above: int, price: float, chains: _Chains) -> None:
        """Add a version that is a difference from another one."""
        self._chains[version] = chains
        self.above[version] = above
        self.nbytes += price

    def tree(self) -> Tree:
        """Return what was added."""
        return Tree(self.above, self.nbytes)


def grow(measured: Measured, near: Near, root: int, rule: Rule = Rule.VERSIONS) -> Tree:
    """Return the tree of all versions that can be reached from one, which is whole.

    Args:
        measured: What versions take.
        near: The versions that each may be a difference from, in both directions.
        root: The version that is whole.
        rule: What limits chains. Without a limit, it is the smallest tree.
    """
    growing = _Growing(measured, rule)
    growing.begin(root)
    waiting: list[tuple[float, int, int, _Chains]] = []
    newest = root
    while True:
        for version in near[newest]:
            if version not in growing.above:
                price, chains = growing.price(version, newest)
                heapq.heappush(waiting, (price, version, newest, chains))
        while waiting and waiting[0][1] in growing.above:
            heapq.heappop(waiting)
        if not waiting:
            return growing.tree()
        price, newest, above, chains = heapq.heappop(waiting)
        growing.add(newest, above, price, chains)


def best(measured: Measured, near: Near, versions: Sequence[int]) -> Tree:
    """Return the smallest tree found of versions that can be reached from each other.

    Any of them may be the one that is whole. Of many, the first one and those are tried that most
    paths of the smallest tree lead through, because chains are short from there.
    """
    roots = versions
    if len(versions) > _MOST_ROOTS:
        middle = _middle(grow(measured, near, versions[0], Rule.NONE))
        roots = [versions[0], *middle[: _MOST_ROOTS - 1]]
    return min((grow(measured, near, root) for root in roots), key=lambda tree: tree.nbytes)


def _middle(tree: Tree) -> list[int]:
    """Return the versions of a tree by the largest part of it that is left without each."""
    below = dict.fromkeys(tree.above, 1)
    largest = dict.fromkeys(tree.above, 0)
    for version, above in list(tree.above.items())[::-1]:
        largest[version] = max(largest[version], len(below) - below[version])
        if above is not None:
            below[above] += below[version]
            largest[above] = max(largest[above], below[version])
    return sorted(largest, key=lambda version: (largest[version], version))


def follow(measured: Measured, above: Mapping[int, int | None]) -> Tree:
    """Return the tree in which each version is a difference from a given one.

    Args:
        measured: What versions take.
        above: The version that each is a difference from, which comes before it; None for whole.
    """
    growing = _Growing(measured, Rule.CHUNKS)
    for version, base in above.items():
        if base is None:
            growing.begin(version)
        else:
            growing.add(version, base, *growing.price(version, base))
    return growing.tree()
