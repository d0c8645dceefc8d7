"""The origin of a tensor: which of its rows come from which rows of other tensors."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

_REACH = 64  # rows by which a run may go on beyond its outermost marks
_VECTOR_REACH = 4096  # the same for elements of vectors
_FEW_ROWS = 8
_FEW_MARKS = 2  # of a tensor's bytes, of which one is enough to tell where they come from


class Run(NamedTuple):
    """Consecutive rows that come from consecutive rows of another tensor.

    Attributes:
        start: The first one.
        stop: The one behind the last one.
        source: Number of the other tensor.
        shift: What must be added to the number of a row there to get the number here.
    """

    start: int
    stop: int
    source: int
    shift: int


class Origin:
    """Where the rows of one tensor come from.

    Args:
        rows: Their number.
        is_vector: Whether a row is a single element.
    """

    def __init__(self, rows: int, *, is_vector: bool) -> None:
        self.rows = rows
        self._reach = _VECTOR_REACH if is_vector else _REACH
        self._at = self._source = self._shift = np.empty(0, np.int64)
        self._found: list[Run] = []

    def add(self, source: int, rows: Numbers, source_rows: Numbers, marks: int) -> None:
        """Add pairs of rows that are probably the same.

        Args:
            source: Number of the other tensor.
            rows: Rows of this tensor.
            source_rows: Those of the other one.
            marks: Number of the marks that were looked up to get them.
        """
        shifts = rows - source_rows
        _, which, votes = np.unique(shifts, return_inverse=True, return_counts=True)
        own = votes[which]
        kept = (own >= min(2, marks)) if marks <= _FEW_MARKS else own >= 2
        kept &= ~self._is_known(rows)
        order = np.argsort(-own[kept], kind="stable")  # of two origins, that of more rows counts
        at, first = np.unique(rows[kept][order], return_index=True)
        shift = shifts[kept][order][first]
        self._at = np.concatenate([self._at, at])
        self._source = np.concatenate([self._source, np.full(len(at), source, np.int64)])
        self._shift = np.concatenate([self._shift, shift])
        self._sort()

    def _is_known(self, rows: Numbers) -> NDArray[np.bool_]:
        """Whether each row lies within a run."""
        found = self._found
        starts = np.array([run.start for run in found], np.int64)
        stops = np.array([run.stop for run in found], np.int64)
        at = starts.searchsorted(rows, "right") - 1
        return (at >= 0) & (rows < np.append(stops, -1)[at])

    def _sort(self) -> None:
        """Sort the pairs, and drop those that contradict their neighbours on both sides."""
        order = self._at.argsort(kind="stable")
        pairs = [column[order] for column in (self._at, self._source, self._shift)]
        _, source, shift = pairs
        kept = np.ones(len(source), bool)
        if len(source) > 2:
            around = (source[:-2] == source[2:]) & (shift[:-2] == shift[2:])
            differs = (source[:-2] != source[1:-1]) | (shift[:-2] != shift[1:-1])
            kept[1:-1] = ~(around & differs)
        self._at, self._source, self._shift = (column[kept] for column in pairs)
        self._found = self._between()

    def _between(self) -> list[Run]:
        """Return the runs from their first to their last known row, in order."""
        if not len(self._at):
            return []
        ends = (self._source[1:] != self._source[:-1]) | (self._shift[1:] != self._shift[:-1])
        first = np.concatenate([[0], np.flatnonzero(ends) + 1])
        last = np.concatenate([first[1:] - 1, [len(self._at) - 1]])
        columns = (self._at[first], self._at[last] + 1, self._source[first], self._shift[first])
        return [Run(*numbers) for numbers in zip(*(c.tolist() for c in columns), strict=True)]

    @property
    def covered(self) -> int:
        """The number of rows whose origin is known."""
        return sum(run.stop - run.start for run in self._found)

    @property
    def is_known(self) -> bool:
        """Whether the origin of nearly all rows is known."""
        return self.rows - self.covered <= max(_FEW_ROWS, self.rows // _FEW_ROWS**2)

    def runs(self, source_rows: Sequence[int]) -> list[Run]:
        """Return the runs, each as long as what lies around it allows.

        Args:
            source_rows: The number of rows of each other tensor.
        """
        found = self._found
        if not found:
            return []
        borders = [0, *self._borders(found, source_rows), self.rows]
        made = []
        for run, (begin, stop) in zip(found, pairwise(borders), strict=True):
            start = max(begin, run.shift, run.start - self._reach)
            end = min(stop, run.shift + source_rows[run.source], run.stop + self._reach)
            if start < end:
                made.append(Run(start, end, run.source, run.shift))
        return made

    def _borders(self, runs: Sequence[Run], source_rows: Sequence[int]) -> Iterator[int]:
        """Yield a row between each run and the next one, at which one of them ends."""
        for run, after in pairwise(runs):
            least, most = run.stop, after.start
            end = min(most, run.shift + source_rows[run.source])
            begin = max(least, after.shift)
            if begin >= end or end < most:  # rows that the first one has no more of
                yield end
            elif begin > least:
                yield begin
            else:
                yield _roundest(least, most)


def _roundest(least: int, most: int) -> int:
    """Return the number of a range that most powers of two divide: heads have such sizes."""
    found = most
    while (rounder := found & (found - 1)) >= max(least, 1):  # without its lowest bit
        found = rounder
    return found
