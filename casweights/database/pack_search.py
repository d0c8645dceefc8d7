"""Finds the frames of a chunk in the packs whose indexes were read."""

from __future__ import annotations

import threading
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from casweights.format.columns import IdColumn
from casweights.format.pack import Location

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from casweights.database.packs import PackLocations
    from casweights.ids import ChunkId, PackId

_FEW_FRAMES = 64  # of a pack: an entry for each is made at once
# One search takes as long as the entries of twice the first number of frames, and sorting frames
# as long as searching once for each time that they have the second number.
_FRAMES_FOR_A_SEARCH, _FRAMES_FOR_SORTING = 4, 16


class _Sorted:
    """Packs whose frames are searched together, in the order of their chunks.

    Args:
        packs: The packs, with IDs of equal length.
    """

    def __init__(self, packs: Sequence[PackLocations]) -> None:
        self.packs = packs
        self.size = sum(map(len, packs))
        self.is_sorted = False  # the first search sorts them

    @cached_property
    def _column(self) -> IdColumn:
        return IdColumn.end_to_end([pack.frames.chunks for pack in self.packs])

    @cached_property
    def _starts(self) -> list[int]:
        """For each pack, the number of the frames before it."""
        return list(accumulate(map(len, self.packs[:-1]), initial=0))

    def of(self, chunk: ChunkId) -> list[Location]:
        """Return the frames of a chunk."""
        self.is_sorted = True
        found: list[Location] = []
        for row in self._column.find(chunk):
            which = bisect_right(self._starts, row) - 1
            pack = self.packs[which]
            found.append(Location(pack.pack, pack.frames.at(row - self._starts[which])))
        return found


class PackSearch:
    """The packs whose indexes were read, in which chunks are looked up.

    A dict with an entry for each frame answers fastest, but takes longer to make than most readers
    search: a pack may have thousands of frames, of which a version needs ten. So the frames of
    large packs are only *sorted*, until searches have taken about as long as the entries would.

    One thread at a time may call `add`; any number may call the other methods at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packs: dict[PackId, PackLocations] = {}
        self._entries: dict[bytes, tuple[PackLocations, ...]] = {}
        self._sorted: _Sorted | None = None  # the packs without entries
        self._patience = 0  # searches among these that may still follow
        self._found: dict[ChunkId, list[Location]] = {}

    def __iter__(self) -> Iterator[PackLocations]:
        """Iterate over the packs."""
        return iter(list(self._packs.values()))

    def __len__(self) -> int:
        return len(self._packs)

    def get(self, pack: PackId) -> PackLocations | None:
        """Return the frames of a pack, or None if it was not added."""
        return self._packs.get(pack)

    def of(self, chunk: ChunkId) -> list[Location]:
        """Return the frames of a chunk, from memory if it was looked up before."""
        found = self._found  # before the packs: results of before a change are not kept after it
        frames = found.get(chunk)
        if frames is None:
            frames = self._look_up(chunk)
            if frames:
                found[chunk] = frames
        return frames

    def forget_found(self) -> None:
        """Forget the frames in memory; they are made again when they are asked for."""
        self._found = {}

    def add(self, pack: PackLocations) -> None:
        """Add a pack, unless it is known."""
        if pack.pack in self._packs:
            return
        self._packs[pack.pack] = pack
        with self._lock:
            if len(pack) <= _FEW_FRAMES or not self._fits(pack):
                self._enter([pack])
            else:
                self._sort_with(pack)
        self.forget_found()

    def without(self, packs: AbstractSet[PackId]) -> PackSearch:
        """Return a search in all packs but these."""
        if self._packs.keys().isdisjoint(packs):
            return self
        made = PackSearch()
        for pack in self:
            if pack.pack not in packs:
                made.add(pack)
        return made

    def _look_up(self, chunk: ChunkId) -> list[Location]:
        # In this order: a pack that gets entries in between is found in both places.
        among, entered = self._sorted, self._entries.get(chunk, ())
        if among is None:
            return [at for pack in entered for at in pack.of(chunk)]
        self._patience -= 1 if among.is_sorted else among.size // _FRAMES_FOR_SORTING
        if self._patience < 0:
            self._enter_sorted()
        found = among.of(chunk)
        for pack in entered:
            if pack not in among.packs:
                found += pack.of(chunk)
        return found

    def _fits(self, pack: PackLocations) -> bool:
        """Whether the IDs of a pack have the length of those that are sorted."""
        width = pack.frames.chunks.width
        return self._sorted is None or self._sorted.packs[0].frames.chunks.width == width

    def _sort_with(self, pack: PackLocations) -> None:
        """Let the next search sort the frames of a pack with those of others without entries."""
        packs = [*(self._sorted.packs if self._sorted else ()), pack]
        self._sorted = _Sorted(packs)
        self._patience += len(pack) // _FRAMES_FOR_A_SEARCH

    def _enter_sorted(self) -> None:
        """Make the entries of all packs that have none."""
        with self._lock:
            if self._sorted is not None:
                self._enter(self._sorted.packs)
                self._sorted, self._patience = None, 0

    def _enter(self, packs: Iterable[PackLocations]) -> None:
        for pack in packs:
            own: tuple[PackLocations, ...] = (pack,)  # most chunks have one, and share this
            new = dict.fromkeys(pack.frames.chunks, own)
            for chunk in new.keys() & self._entries.keys():
                new[chunk] = (*self._entries[chunk], pack)
            self._entries |= new
