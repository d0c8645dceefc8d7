"""Which versions of a store are worth storing as differences from others than they are now.

Signatures name a few versions that each may be a difference from, trials measure these differences,
and versions that are related to each other become a tree.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from casweights.operations.prediction import predict
from casweights.operations.tree import Rule, best, follow, grow
from casweights.operations.trials import Trials

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from casweights.config import Compression
    from casweights.database import Database
    from casweights.format.signature import Signature
    from casweights.ids import SnapshotId
    from casweights.operations.ordering import Placed

_NEAREST = 6  # versions that each is compared with
_SEARCHED = 16  # of which these are chosen, by what signatures promise
_LINKED = 3  # versions of a part that look for others outside it
_LEAST = 3  # versions of a tree: of two, one is whole in any case
_CLEARLY = 0.98  # of what the present bases take
_RELATED = 1 / 2  # of a whole: larger differences are not worth it, as for a commit
_SERVED = 1 / 10  # of a version's bytes, for which it counts as made from another one


class Forest(NamedTuple):
    """The trees of a store.

    Attributes:
        above: The version that each is to be a difference from; None for whole. Versions that stay
            as they are now are left out.
        versions: The number of versions that were compared.
        nbytes: What these take, about: in trees, or as they are now.
        least: What they would take in trees with chains of any length.
    """

    above: Mapping[SnapshotId, SnapshotId | None] = {}
    versions: int = 0
    nbytes: float = 0.0
    least: float = 0.0


def forest(db: Database, versions: Mapping[SnapshotId, Placed], compression: Compression) -> Forest:
    """Return the trees that take clearly less than the present bases.

    Versions with a signature take part: others are steps between them, which are read one after the
    other. So do their parents, or they stay. Nothing depends on how versions are stored now but for
    those that are made from several others, so that repeating this has the same result.

    Args:
        db: The store.
        versions: All versions, each after its parent.
        compression: How whole chunks are stored.

    Raises:
        IntegrityError: A version cannot be read.
        StoreError: The store could not be read.
    """
    signatures = db.signatures.of(versions)
    free = _free(versions, signatures)
    total = Forest({})
    groups: dict[object, list[SnapshotId]] = {}
    for version in free:
        form = frozenset(Counter(signatures[version].grids).items())
        groups.setdefault(form, []).append(version)
    for group in groups.values():
        if len(group) >= _LEAST:
            for found in _Group(db, versions, signatures, group, compression).trees():
                total = Forest(
                    {**total.above, **found.above},
                    total.versions + found.versions,
                    total.nbytes + found.nbytes,
                    total.least + found.least,
                )
    return total


def _free(
    versions: Mapping[SnapshotId, Placed], signatures: Container[SnapshotId]
) -> dict[SnapshotId, None]:
    """Return the versions whose base may be another one."""
    free: dict[SnapshotId, None] = {}
    for version, known in versions.items():
        served = [one for one in known.lineage if one.nbytes > _SERVED * known.size]
        has_parent = known.parent is None or known.parent in free
        if version in signatures and has_parent and len(served) <= 1:
            free[version] = None
    return free


class _Group:
    """Versions with the same tensors.

    Args:
        db: The store.
        versions: All versions of the store.
        signatures: Their signatures.
        group: The versions, each after its parent.
        compression: How whole chunks are stored.
    """

    def __init__(
        self,
        db: Database,
        versions: Mapping[SnapshotId, Placed],
        signatures: Mapping[SnapshotId, Signature],
        group: Sequence[SnapshotId],
        compression: Compression,
    ) -> None:
        self._db = db
        self._signatures = signatures
        self._group = group
        self._trials = Trials(db, group, compression)
        self._number = {group[n]: n for n in self._trials.numbers}
        parents = {n: versions[version].parent for version, n in self._number.items()}
        self._parents = {n: p if p is None else self._number.get(p) for n, p in parents.items()}
        self._listed = db.signatures.listed()

    def trees(self) -> Iterator[Forest]:
        """Yield a forest of one tree for each part of related versions."""
        near = self._near()
        self._trials.measure((n, m) for n in near for m in sorted(near[n]) if n < m)
        related = {n: {m for m in others if self._are_related(n, m)} for n, others in near.items()}
        for part in _parts(related):
            if len(part) >= _LEAST:
                yield self._tree(related, part)

    def _tree(self, near: Mapping[int, set[int]], part: Sequence[int]) -> Forest:
        """Return the tree of a part if that is clearly smaller than with the present bases."""
        present = follow(self._trials, {n: self._present(near, n) for n in part})
        tree = best(self._trials, near, part)
        least = min(grow(self._trials, near, part[0], Rule.NONE).nbytes, tree.nbytes)
        if tree.nbytes > _CLEARLY * present.nbytes:
            return Forest({}, len(part), present.nbytes, least)
        above = {
            self._group[n]: None if base is None else self._group[base]
            for n, base in tree.above.items()
        }
        return Forest(above, len(part), tree.nbytes, least)

    def _present(self, near: Mapping[int, set[int]], number: int) -> int | None:
        """Return the version that one is a difference from without a tree: it comes before it."""
        if (parent := self._parents[number]) is not None:
            return parent
        before = [n for n in near[number] if n < number]
        sizes = {n: float(self._trials.difference(n, number).sum()) for n in before}
        return min(before, key=sizes.__getitem__, default=None)

    def _are_related(self, one: int, other: int) -> bool:
        if self._parents[other] == one or self._parents[one] == other:
            return True
        size = self._trials.difference(one, other).sum()
        return bool(size <= _RELATED * self._trials.whole(one).sum())

    def _near(self) -> dict[int, set[int]]:
        """Return the versions that each is compared with."""
        near: dict[int, set[int]] = {n: set() for n in self._number.values()}

        def link(number: int, others: Iterable[int]) -> bool:
            new = set(others) - near[number] - {number}
            near[number] |= new
            for other in new:
                near[other].add(number)
            return bool(new)

        for number in near:
            link(number, self._nearest(number, near))
            if (parent := self._parents[number]) is not None:
                link(number, [parent])
        while len(parts := _parts(near)) > 1:  # each round halves their number, or ends
            largest = max(parts, key=len)
            linked = False
            for part in parts:
                if part is not largest:
                    outside = near.keys() - set(part)
                    for number in part[:: max(1, len(part) // _LINKED)]:
                        linked |= link(number, self._nearest(number, outside))
            if not linked:
                break
        return near

    def _nearest(self, number: int, others: Container[int]) -> list[int]:
        """Return the versions from which samples promise the smallest differences."""
        own = self._signatures[self._group[number]]
        within = {v for v, n in self._number.items() if n in others and n != number}
        found = self._db.signatures.nearest(own, within=within, most=_SEARCHED, listed=self._listed)
        costs = {
            self._number[one.snapshot]: sum(match.nbytes for match in predict(own, one.signature))
            for one in found
        }
        return sorted(costs, key=lambda n: (costs[n], n))[:_NEAREST]


def _parts(near: Mapping[int, Iterable[int]]) -> list[list[int]]:
    """Return the versions that can be reached from each other, part by part, in order."""
    parts: list[list[int]] = []
    left = dict.fromkeys(near)
    while left:
        waiting, part = [next(iter(left))], set[int]()
        while waiting:
            number = waiting.pop()
            if number not in part:
                part.add(number)
                waiting += near[number]
        parts.append(sorted(part))
        for number in part:
            del left[number]
    return parts
