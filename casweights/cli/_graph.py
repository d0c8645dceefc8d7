"""The graph of `log --graph`: a column for each line of versions, newest first."""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casweights.ids import SnapshotId


def children_first(parents: Mapping[SnapshotId, Sequence[SnapshotId]]) -> list[SnapshotId]:
    """Return versions so that each comes after its children, otherwise in the order given.

    Args:
        parents: The parents of each version; those that are not versions of the graph are ignored.
    """
    order = {version: number for number, version in enumerate(parents)}
    children = Counter(parent for found in parents.values() for parent in set(found))
    ready = [number for version, number in order.items() if not children[version]]
    heapify(ready)
    versions, found = list(parents), list[int]()
    while ready:
        found.append(number := heappop(ready))
        for parent in set(parents[versions[number]]) & order.keys():
            children[parent] -= 1
            if not children[parent]:
                heappush(ready, order[parent])
    # Only forged records of expired versions lead in circles.
    left = sorted(set(order.values()).difference(found))
    return [versions[number] for number in (*found, *left)]


class Drawn(NamedTuple):
    """What is drawn for a version.

    Attributes:
        head: What comes before the version.
        under: What comes before further lines about it.
        found: The same for a line about a version that it was made from without a declared edge.
        edges: Lines that lead to its parents, to be drawn if something follows.
    """

    head: str
    under: str
    found: str
    edges: list[str]


class Columns:
    """The columns of a graph, each of which leads down to a version that is not drawn yet."""

    def __init__(self) -> None:
        self._leading: list[SnapshotId] = []
        self._drawn: set[SnapshotId] = set()

    def draw(self, version: SnapshotId, parents: Sequence[SnapshotId]) -> Drawn:
        """Draw a version below its children.

        Args:
            version: The version.
            parents: Its parents; those that are drawn already get no edge.
        """
        if version not in self._leading:
            self._leading.append(version)
        self._drawn.add(version)
        at = self._leading.index(version)
        below = [parent for parent in dict.fromkeys(parents) if parent not in self._drawn]
        head, under, found = (self._bars(at, m) for m in ("*", "|" if below else " ", ":"))
        return Drawn(head, under, found, self._edges(at, below))

    def _bars(self, at: int, mark: str) -> str:
        return " ".join(mark if n == at else "|" for n in range(len(self._leading)))

    def _edges(self, at: int, parents: Sequence[SnapshotId]) -> list[str]:
        """Lead the column of a version to its parents."""
        lines = []
        for other in parents[1:]:
            if other in self._leading:
                lines.append(self._join(at, self._leading.index(other)))
            else:
                lines.append(self._open(at, other))
        if not parents:
            lines.append(self._close(at, None))
        elif parents[0] not in self._leading:
            self._leading[at] = parents[0]
        elif (column := self._leading.index(parents[0])) < at:
            lines.append(self._close(at, column))
        else:  # columns always join those on their left
            self._leading[at] = parents[0]
            lines.append(self._close(column, at))
        return lines

    def _join(self, at: int, other: int) -> str:
        """Draw an edge from one column to another, both of which go on."""
        line = list(self._bars(-1, ""))
        line[2 * at + (1 if other > at else -1)] = "\\" if other > at else "/"
        for n in range(min(at + 1, other), max(other, at - 1)):
            line[2 * n + 1] = "_"
        return "".join(line)

    def _open(self, at: int, version: SnapshotId) -> str:
        """Begin a column to the right of another one."""
        right = len(self._leading) - at
        self._leading.insert(at + 1, version)
        return " ".join(["|"] * at + ["|\\"] + ["\\"] * (right - 1))

    def _close(self, at: int, into: int | None) -> str:
        """End a column, in another one or with its version; those to the right move."""
        right = len(self._leading) - at - 1
        del self._leading[at]
        left = list(" ".join("|" * at) + " " * (at > 0))
        if into is not None:
            left[2 * into + 1 :: 2] = "_" * (at - into - 1) + "/"
        return "".join(left) + " /" * right
