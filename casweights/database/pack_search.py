"""Finds the frames of a chunk in the packs whose indexes were read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casweights.database.pack_rows import PackRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from casweights.database.packs import PackLocations
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId


class PackSearch:
    """The packs whose indexes were read, in which chunks are looked up.

    The first look-up sorts the frames of all packs that are new since the one before. Those of
    earlier packs are sorted again only if they are few, so that there are few parts to search in.

    One thread at a time may call `add`; any number may call the other methods at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packs: dict[PackId, PackLocations] = {}
        self._parts: Sequence[PackRows] = ()  # the largest first; replaced as a whole
        self._unsorted: list[PackLocations] = []  # packs that are in no part yet
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
            if self._unsorted:
                self._sort()
            frames = [location for part in self._parts for location in part.of(chunk)]
            if frames:
                found[chunk] = frames
        return frames

    def rows(self) -> PackRows:
        """Return the frames of all packs."""
        with self._lock:
            if self._unsorted or len(self._parts) != 1:
                self._parts, self._unsorted = [PackRows(list(self))], []
            return self._parts[0]

    def forget_found(self) -> None:
        """Forget the frames in memory; they are made again when they are asked for."""
        self._found = {}

    def add(self, pack: PackLocations) -> None:
        """Add a pack, unless it is known."""
        if pack.pack in self._packs:
            return
        with self._lock:
            self._packs[pack.pack] = pack
            self._unsorted.append(pack)
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

    def _sort(self) -> None:
        """Sort the frames of new packs, with those of the parts that are not much larger."""
        with self._lock:
            if not self._unsorted:
                return  # another thread has sorted them
            packs, parts = self._unsorted, list(self._parts)
            size = sum(map(len, packs))
            while parts and len(parts[-1]) <= 2 * size:
                last = parts.pop()
                packs = [*last.packs, *packs]
                size += len(last)
            # In this order: readers must find each pack.
            self._parts = [*parts, PackRows(packs)]
            self._unsorted = []
