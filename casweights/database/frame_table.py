"""A table of frames by chunk, filled from the indexes of packs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.ids import Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence

    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId

# Frames of one chunk up to which a search through the list is faster than a set. Honest stores
# rarely have more; forged ones may have any number.
FEW_FRAMES = 8


class FrameTable:
    """The known frames of each chunk, and which of them are excluded or in doubt.

    *Excluded* frames were found damaged by this process and count as missing. Frames *in doubt*
    have a finding, and are used only where no other chain exists.

    One thread at a time may change a table, under the lock of its owner. Other threads may read
    it at the same time, and see the state before or after each change.

    Attributes:
        version: A number that grows with every change that may open or close chains to known
            chunks, except for exclusions and for chunks that are forgotten.
        size: Number of frames that are known and not excluded.
        exclusions: All excluded frames, in the order of exclusion; only ever appended to, so that
            a `ChainFinder` can apply those that are new to it.
    """

    def __init__(self) -> None:
        self._known: dict[ChunkId, list[Location]] = {}
        self._many: dict[ChunkId, set[Location]] = {}  # the same, for chunks with many frames
        self._excluded: set[Location] = set()
        self._doubted: set[Suspect] = set()
        self._unknown_bases: set[ChunkId] = set()
        self.version = 0
        self.size = 0
        self.exclusions: list[Location] = []

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._known

    def __iter__(self) -> Iterator[ChunkId]:
        """Iterate over the chunks that have a known frame."""
        return iter(list(self._known))

    def packs(self) -> set[PackId]:
        """Return the packs of all frames that are not excluded."""
        return {location.pack for found in self._known.values() for location in found}

    def locations(self) -> Iterator[Location]:
        """Yield all frames, including the excluded ones."""
        yield from (
            location for locations in list(self._known.values()) for location in list(locations)
        )
        yield from list(self._excluded)

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """Return the frames of a chunk that are neither excluded nor in doubt."""
        found = self.all_frames(chunk)
        if not self._doubted:
            return found
        return [location for location in found if not self.doubts(location)]

    def all_frames(self, chunk: ChunkId) -> Sequence[Location]:
        """Return the frames of a chunk that are not excluded, including those in doubt."""
        return self._known.get(chunk, ())

    def has_frame(self, chunk: ChunkId, pack: PackId) -> bool:
        """Return whether a frame of a chunk in this pack is known."""
        return any(location.pack == pack for location in self.all_frames(chunk))

    def doubt(self, suspects: Collection[Suspect]) -> None:
        """Put exactly these frames, and all frames of these packs, in doubt, and no others."""
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
        """Add frames, except for those that are excluded or known."""
        # The version stays the same for frames of chunks that this call added: finders have not
        # looked for chains to them. A commit adds many such frames, and finders keep their results.
        new: set[ChunkId] = set()
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
            self.size += 1

    def _has(self, location: Location) -> bool:
        """Whether a frame is known; if not, the caller adds it next."""
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

    def move(self, locations: Iterable[Location], gone: Container[PackId]) -> bool:
        """Put frames in the place of those that chunks have in packs that are gone.

        Args:
            locations: Frames, among them a copy of each frame in a pack that is gone. Those of
                chunks without a known frame are left out.
            gone: The packs.

        Returns:
            Whether none was left out.
        """
        complete = True
        for location in locations:
            chunk, base = location.frame.chunk, location.frame.base
            known = self._known.get(chunk)
            if known is None:
                complete = False
                continue
            left = [at for at in known if at.pack not in gone and at != location]
            self._known[chunk] = [*left, location]
            self._many.pop(chunk, None)
            self.size += 1 + len(left) - len(known)
            if base is not None and base not in self._known:
                self._unknown_bases.add(base)
        self.version += 1
        return complete

    def exclude(self, locations: Iterable[Location]) -> None:
        """Count frames as missing. The time grows with the number of frames of their chunks."""
        locations = list(locations)
        self._excluded.update(locations)
        for chunk in {location.frame.chunk for location in locations}:
            known = self._known.get(chunk, [])
            left = [location for location in known if location not in self._excluded]
            self.size -= len(known) - len(left)
            self._known[chunk] = left
            self._many.pop(chunk, None)
        self.exclusions += locations

    def retain(self, packs: Iterable[PackId]) -> None:
        """Forget the frames of all packs but these."""
        kept, known = set(packs), FrameTable()
        known._excluded = {location for location in self._excluded if location.pack in kept}
        known.add(location for location in self.locations() if location.pack in kept)
        self._excluded, self._many = known._excluded, known._many
        self._unknown_bases = known._unknown_bases
        self._known = known._known  # one assignment, because other threads read without a lock
        self.size = known.size
        self.version += 1

    def forget(self, kept: Container[ChunkId], packs: Container[PackId]) -> set[PackId]:
        """Forget all frames of other chunks than `kept`, except those in some packs.

        Chains that lead through kept chunks alone stay as they are.

        Returns:
            The packs of the frames that were forgotten.
        """
        thinned: set[PackId] = set()
        for chunk, found in list(self._known.items()):
            if chunk in kept or any(location.pack in packs for location in found):
                continue
            thinned.update(location.pack for location in found)
            self.size -= len(found)
            del self._known[chunk]
            self._many.pop(chunk, None)
        bases = {location.frame.base for known in self._known.values() for location in known}
        self._unknown_bases = {base for base in bases if base and base not in self._known}
        return thinned

    def clear(self) -> None:
        """Forget all frames and exclusions. Frames in doubt are in doubt when added again."""
        self._known.clear()
        self._many.clear()
        self._excluded.clear()
        self._unknown_bases.clear()
        self.size = 0
        self.version += 1
