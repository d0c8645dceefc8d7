"""Rows: the frames of packs that were read, found by their chunk."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from casweights.format.columns import repeats, sort_rows
from casweights.ids import ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.database.packs import PackLocations
    from casweights.format.pack import Location

_KEY = 8  # bytes of an ID that its row is sorted by
_ALIKE = 8  # IDs that may begin with the same bytes: the frames of a chunk
_MASK = (1 << 64) - 1


class PackRows:
    """The frames of some packs, in rows that are sorted by their chunks. It never changes.

    A row takes 12 bytes, where a dict takes some 100 for each chunk and five times as long to make.
    Frames of one chunk have no order.

    Args:
        packs: The packs.

    Attributes:
        packs: The argument.
    """

    def __init__(self, packs: Sequence[PackLocations]) -> None:
        self.packs = packs
        self._starts = list(accumulate(map(len, packs), initial=0))
        self._key = _beginning
        self._keys, self._numbers = sort_rows(_joined(p.frames.chunks.beginnings() for p in packs))
        if repeats(self._keys, _ALIKE):
            # IDs may be forged to begin alike. Python's hash has a new key in each process.
            self._key = _hash
            hashes = array("Q", (_hash(chunk) for pack in packs for chunk in pack.frames.chunks))
            self._keys, self._numbers = sort_rows(hashes)

    def __len__(self) -> int:
        return len(self._numbers)

    def rows(self, chunk: bytes) -> Iterator[int]:
        """Yield the rows of a chunk."""
        key, keys = self._key(chunk), self._keys
        row = bisect_left(keys, key)
        while row < len(keys) and keys[row] == key:
            if self._id(row) == chunk:
                yield row
            row += 1

    def first(self, chunk: bytes) -> int | None:
        """Return the first row of a chunk, or None if it has none."""
        return next(self.rows(chunk), None)

    def _frame(self, number: int) -> tuple[PackLocations, int]:
        """Return the pack of a frame by its number in all packs, and its number in that pack."""
        pack = bisect_right(self._starts, number) - 1
        return self.packs[pack], number - self._starts[pack]

    def _id(self, row: int) -> bytes:
        pack, number = self._frame(self._numbers[row])
        return pack.frames.chunks.at(number)

    def chunk(self, row: int) -> ChunkId:
        """Return the chunk of a row."""
        return ChunkId(self._id(row))

    def location(self, row: int) -> Location:
        """Return the location of a row's frame."""
        pack, number = self._frame(self._numbers[row])
        return pack.at(number)

    def row(self, location: Location) -> int | None:
        """Return the row of a frame, or None if it is in none of the packs."""
        for row in self.rows(location.frame.chunk):
            if self.location(row) == location:
                return row
        return None

    def of(self, chunk: bytes) -> list[Location]:
        """Return the locations of a chunk's frames, in the order of the packs and in them."""
        key, keys = self._key(chunk), self._keys
        row = bisect_left(keys, key)
        if row == len(keys) or keys[row] != key:  # as in most packs
            return []
        frames = map(self._frame, sorted(self._numbers[row : bisect_right(keys, key, row)]))
        return [pack.at(n) for pack, n in frames if pack.frames.chunks.at(n) == chunk]


def _beginning(chunk: bytes) -> int:
    return int.from_bytes(chunk[:_KEY], sys.byteorder)


def _hash(chunk: bytes) -> int:
    return hash(chunk) & _MASK


def _joined(columns: Iterable[array[int]]) -> array[int]:
    joined = array("Q")
    for column in columns:
        joined += column
    return joined
