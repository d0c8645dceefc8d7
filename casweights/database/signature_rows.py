"""The rows of all objects of signatures that a handle knows, numbered through."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casweights.format.signatures import Row, Rows
    from casweights.ids import SnapshotId


class Place(NamedTuple):
    """Where a signature lies: an object, and a row of it.

    Attributes:
        name: Name of the object.
        row: The row.
    """

    name: str
    row: Row

    @property
    def key(self) -> bytes:
        """Tells signatures apart: the version's ID, and the checksum."""
        return self.row.snapshot + self.row.check

    @property
    def span(self) -> tuple[str, int, int]:
        """The object, and where the signature begins and ends in it."""
        return self.name, self.row.offset, self.row.offset + self.row.size


class JoinedRows:
    """The rows of several objects.

    Two objects may have the same rows, after two merges at the same moment. Two that say different
    things about one version both count, so that a forged one hides nothing.

    Args:
        objects: The rows of each object, by its name.

    Attributes:
        objects: The rows, in the order of the objects' names.
        numbers: The number of each row, by its key.
    """

    def __init__(self, objects: Mapping[str, Rows]) -> None:
        self._names = sorted(name for name, rows in objects.items() if rows)
        self.objects = [objects[name] for name in self._names]
        self._starts = list(accumulate(map(len, self.objects), initial=0))
        keys = list(chain.from_iterable(rows.keys for rows in self.objects))
        keys.reverse()  # of equal rows, the first one counts
        self.numbers = dict(zip(keys, reversed(range(len(keys))), strict=True))

    def __getitem__(self, number: int) -> Place:
        at = bisect_right(self._starts, number) - 1
        return Place(self._names[at], self.objects[at][number - self._starts[at]])

    def of(self, snapshot: SnapshotId) -> Iterator[Place]:
        """Yield where the signatures of a version are; more than one only if one is false."""
        for first, rows in zip(self._starts, self.objects, strict=False):
            at = bisect_right(rows.snapshots, snapshot) - 1
            if at >= 0 and rows.snapshots[at] == snapshot:
                yield self[first + at]
