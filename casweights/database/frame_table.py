"""Frames by their chunk: all that were read from the indexes of packs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.ids import Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId

FEW_FRAMES = 8  # of a chunk; with more, which only forged stores have, they are looked up by hash


class FrameTable:
    """Frames by their chunk, with those that are excluded or in doubt.

    *Excluded* frames were found damaged here and count as missing. Frames *in doubt* were found
    damaged by others, and are used where there is no other way.

    One thread at a time may change a table, under the lock of its owner. Others may read it at
    the same time, and find it as it was or as it is.

    Attributes:
        version: Grows with every change that may open or close chains to known chunks, except
            for exclusions.
        exclusions: All frames that were excluded, in order.
    """

    def __init__(self) -> None:
        self._known: dict[ChunkId, list[Location]] = {}
        self._many: dict[ChunkId, set[Location]] = {}  # the same, for chunks with many frames
        self._excluded: set[Location] = set()
        self._doubted: set[Suspect] = set()
        self._unknown_bases: set[ChunkId] = set()
        self.version = 0
        self.exclusions: list[Location] = []

    def __iter__(self) -> Iterator[ChunkId]:
        """Every chunk that is known."""
        return iter(list(self._known))

    def locations(self) -> Iterator[Location]:
        """All frames, the excluded ones included."""
        yield from (
            location for locations in list(self._known.values()) for location in list(locations)
        )
        yield from list(self._excluded)

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All frames of a chunk that are neither excluded nor in doubt."""
        found = self.all_frames(chunk)
        if not self._doubted:
            return found
        return [location for location in found if not self.doubts(location)]

    def all_frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All frames of a chunk that are not excluded."""
        return self._known.get(chunk, ())

    def doubt(self, suspects: Collection[Suspect]) -> None:
        """Count exactly these frames, and all frames of these packs, as in doubt."""
        if self._doubted != suspects:
            self._doubted = set(suspects)
            self.version += 1

    @property
    def has_doubts(self) -> bool:
        """Whether any frame is in doubt."""
        return bool(self._doubted)

    def doubts(self, location: Location) -> bool:
        """Whether a frame is in doubt."""
        return not self._doubted.isdisjoint((location.suspect, Suspect(location.pack, None)))

    def add(self, locations: Iterable[Location]) -> None:
        """Add frames that were read, unless they are excluded or known."""
        new: set[ChunkId] = (
            set()
        )  # no chain to these was looked for yet, so further frames change none
        for location in locations:
            chunk, base = location.frame.chunk, location.frame.base
            if location in self._excluded or self._has(location):
                continue
            is_new = chunk not in self._known
            if not (is_new or chunk in new) or chunk in self._unknown_bases:
                self.version += 1
                self._unknown_bases.discard(chunk)
            if is_new:
                new.add(chunk)
            if base is not None and base not in self._known:
                self._unknown_bases.add(base)
            self._known.setdefault(chunk, []).append(location)

    def _has(self, location: Location) -> bool:
        chunk = location.frame.chunk
        known = self._known.get(chunk, ())
        if len(known) < FEW_FRAMES:
            return location in known
        many = self._many.get(chunk)
        if many is None:
            many = self._many[chunk] = set(known)
        if location in many:
            return True
        many.add(location)
        return False

    def exclude(self, locations: Iterable[Location]) -> None:
        """Count frames as missing. This takes time for all frames of each of their chunks."""
        locations = list(locations)
        self._excluded.update(locations)
        for chunk in {location.frame.chunk for location in locations}:
            known = self._known.get(chunk, [])
            self._known[chunk] = [location for location in known if location not in self._excluded]
            self._many.pop(chunk, None)
        self.exclusions += locations

    def retain(self, packs: Iterable[PackId]) -> None:
        """Forget the frames of all other packs."""
        kept, known = set(packs), FrameTable()
        known._excluded = {location for location in self._excluded if location.pack in kept}
        known.add(location for location in self.locations() if location.pack in kept)
        self._excluded, self._many = known._excluded, known._many
        self._unknown_bases = known._unknown_bases
        self._known = known._known  # in one step, because other threads look for chunks
        self.version += 1

    def clear(self) -> None:
        """Forget all frames; frames in doubt stay so when they are added again."""
        self._known.clear()
        self._many.clear()
        self._excluded.clear()
        self._unknown_bases.clear()
        self.version += 1
