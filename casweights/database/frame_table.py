"""A table of frames by chunk, filled from the indexes of packs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.database.packs import PackLocations
from casweights.ids import ChunkId, Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from casweights.format.pack import Location
    from casweights.ids import PackId

# Frames of one chunk up to which a search through the list is faster than a set. Honest stores
# rarely have more; forged ones may have any number.
FEW_FRAMES = 8


class FrameTable:
    """The known frames of each chunk, and which of them are excluded or in doubt.

    *Excluded* frames were found damaged by this process and count as missing. Frames *in doubt*
    have a finding, and are used only where no other chain exists.

    The frames of a pack that was read stay in the columns of its index until they are asked for:
    a pack may have tens of thousands of frames, of which a version needs one.

    One thread at a time may change a table, under the lock of its owner. Other threads may read
    it at the same time, and see the state before or after each change.

    Attributes:
        version: A number that grows with every change that may open or close chains to known
            chunks, except for exclusions and for chunks that are forgotten.
        exclusions: All excluded frames, in the order of exclusion; only ever appended to, so that
            a `ChainFinder` can apply those that are new to it.
    """

    def __init__(self) -> None:
        self._known: dict[ChunkId, list[Location]] = {}
        self._many: dict[ChunkId, set[Location]] = {}  # the same, for chunks with many frames
        self._packs: dict[PackId, PackLocations] = {}  # packs with frames that are not in `_known`
        self._in_pack: dict[bytes, PackLocations] = {}  # one of them for each chunk of such frames
        self._excluded: set[Location] = set()
        self._damaged: set[Suspect] = set()  # what findings are about
        self._doubted: set[Suspect] = set()  # the same, and the packs that lie aside
        self._unknown_bases: set[ChunkId] = set()
        self._to_note: list[PackLocations] = []  # packs whose bases are not in `_unknown_bases` yet
        self._least_whole: dict[int, int] = {}  # by raw size; frames that are forgotten count, too
        self._made = 0  # frames in `_known`
        self.version = 0
        self.exclusions: list[Location] = []

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._known or chunk in self._in_pack

    def __iter__(self) -> Iterator[ChunkId]:
        """Iterate over the chunks that have a known frame."""
        return iter([*self._known, *map(ChunkId, self._in_pack.keys() - self._known.keys())])

    @property
    def size(self) -> int:
        """Number of frames that are known and not excluded, about."""
        return self._made + len(self._in_pack)

    def packs(self) -> set[PackId]:
        """Return the packs of all frames that are not excluded."""
        packs = {location.pack for found in self._known.values() for location in found}
        return packs.union(self._packs)

    def pack(self, pack: PackId) -> PackLocations | None:
        """Return the frames that came with the index of a pack, including the excluded ones."""
        return self._packs.get(pack)

    def scattered(self) -> Iterator[Location]:
        """Yield all frames that `pack` does not return, including the excluded ones."""
        known = (location for found in list(self._known.values()) for location in list(found))
        for location in (*known, *self._excluded):
            pack = self._packs.get(location.pack)
            if pack is None or location not in pack.of(location.frame.chunk):
                yield location

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """Return the frames of a chunk that are neither excluded nor in doubt."""
        found = self.all_frames(chunk)
        if not self._doubted:
            return found
        return [location for location in found if not self.doubts(location)]

    def undamaged_frames(self, chunk: ChunkId) -> Sequence[Location]:
        """Return the frames of a chunk that are neither excluded nor found damaged."""
        return [at for at in self.all_frames(chunk) if not _is_among(self._damaged, at)]

    def all_frames(self, chunk: ChunkId) -> Sequence[Location]:
        """Return the frames of a chunk that are not excluded, including those in doubt."""
        known, pack = self._known.get(chunk, ()), self._in_pack.get(chunk)
        if pack is None:
            return known
        return [*known, *pack.of(chunk)] if known else pack.of(chunk)

    def least_whole(self, raw_size: int) -> int:
        """Return a number of bytes that no known frame without a base of this raw size is below."""
        return self._least_whole.get(raw_size, 0)

    def _note_whole(self, raw_size: int, size: int) -> None:
        """Note the size of a frame without a base, before the frame can be found."""
        self._least_whole[raw_size] = min(size, self._least_whole.get(raw_size, size))

    def has_frame(self, chunk: ChunkId, pack: PackId) -> bool:
        """Return whether a frame of a chunk in this pack is known."""
        return any(location.pack == pack for location in self.all_frames(chunk))

    def doubt(self, damaged: Collection[Suspect], aside: Iterable[PackId] = ()) -> None:
        """Put exactly these frames, and all frames of these packs, in doubt, and no others.

        Args:
            damaged: Frames and packs that were found damaged.
            aside: Packs that do not lie in their places.
        """
        doubted = {*damaged, *(Suspect(pack, None) for pack in aside)}
        if (self._damaged, self._doubted) != (damaged, doubted):
            self._damaged, self._doubted = set(damaged), doubted
            self.version += 1

    @property
    def has_doubts(self) -> bool:
        """Whether any frame is in doubt."""
        return bool(self._doubted)

    def doubts(self, location: Location) -> bool:
        """Whether a frame is in doubt."""
        return _is_among(self._doubted, location)

    def add(self, locations: Iterable[Location]) -> None:
        """Add frames, except for those that are excluded or known."""
        if isinstance(locations, PackLocations):
            self._add_pack(locations)
            return
        self._note_bases()
        # The version stays the same for frames of chunks that this call added: finders have not
        # looked for chains to them. A commit adds many such frames, and finders keep their results.
        new: set[ChunkId] = set()
        for location in locations:
            chunk, base = location.frame.chunk, location.frame.base
            if (self._excluded and location in self._excluded) or self._has(location):
                continue
            is_new = chunk not in self
            if not (is_new or chunk in new) or chunk in self._unknown_bases:
                self.version += 1
                self._unknown_bases.discard(chunk)
            if is_new:
                new.add(chunk)
            if base is None:
                self._note_whole(location.frame.raw_size, location.frame.size)
            elif base not in self:
                self._unknown_bases.add(base)
            self._known.setdefault(chunk, []).append(location)
            self._made += 1

    def _add_pack(self, pack: PackLocations) -> None:
        """Add all frames of a pack, and make none that was not made before."""
        if pack.pack in self._packs:
            return
        for raw_size, size in pack.frames.whole_sizes():
            self._note_whole(raw_size, size)
        chunks = dict.fromkeys(pack.frames.chunks, pack)
        for chunk in chunks.keys() & self._in_pack.keys():
            self._take(ChunkId(chunk))
        again = [ChunkId(chunk) for chunk in chunks.keys() & self._known.keys()]
        self._packs[pack.pack] = pack
        self._in_pack |= chunks
        for chunk in again:
            self._drop_copies(chunk, pack)
        self._leave_out([at for at in self._excluded if at.pack == pack.pack], set(again))
        self._to_note.append(pack)
        self._unknown_bases -= chunks.keys()
        self.version += 1

    def _leave_out(self, excluded: Sequence[Location], again: set[ChunkId]) -> None:
        """Exclude frames of a new pack; forget their chunks if none is left and none was known."""
        self._exclude(excluded)
        for chunk in {location.frame.chunk for location in excluded} - again:
            if not self._known[chunk]:
                del self._known[chunk]

    def _drop_copies(self, chunk: ChunkId, pack: PackLocations) -> None:
        """Forget the frames of a chunk that the columns of a pack have, too."""
        known, own = self._known[chunk], set(pack.of(chunk))
        self._known[chunk] = [location for location in known if location not in own]
        self._made -= len(known) - len(self._known[chunk])
        self._many.pop(chunk, None)

    def _note_bases(self) -> None:
        """Remember the bases that frames of new packs build on and of which no frame is known.

        Only those who add single frames need this, not those who read packs.
        """
        for pack in self._to_note:
            unknown = set(pack.frames.bases).difference(self._in_pack).difference(self._known)
            self._unknown_bases.update(map(ChunkId, unknown))
        self._to_note = []

    def _take(self, chunk: ChunkId) -> None:
        """Make the frames of a chunk that are only in the columns of a pack."""
        pack = self._in_pack.get(chunk)
        if pack is not None:
            self._known[chunk] = [*self._known.get(chunk, ()), *pack.of(chunk)]
            self._made += len(pack.of(chunk))
            self._many.pop(chunk, None)
            del self._in_pack[chunk]

    def _has(self, location: Location) -> bool:
        """Whether a frame is known; if not, the caller adds it next."""
        chunk = location.frame.chunk
        pack = self._in_pack.get(chunk)
        if pack is not None and pack.pack == location.pack:
            self._take(chunk)
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
        self._note_bases()
        for location in locations:
            chunk, base = location.frame.chunk, location.frame.base
            if chunk not in self:
                complete = False
                continue
            self._take(chunk)
            known = self._known[chunk]
            left = [at for at in known if at.pack not in gone]
            new = left if self._has(location) else [*left, location]
            self._known[chunk] = new
            self._many.pop(chunk, None)
            self._made += len(new) - len(known)
            if base is None:
                self._note_whole(location.frame.raw_size, location.frame.size)
            elif base not in self:
                self._unknown_bases.add(base)
        self._drop_packs({pack for pack in self._packs if pack in gone})
        self.version += 1
        return complete

    def exclude(self, locations: Iterable[Location]) -> None:
        """Count frames as missing. The time grows with the number of frames of their chunks."""
        locations = list(locations)
        self._excluded.update(locations)
        self._exclude(locations)
        self.exclusions += locations

    def _exclude(self, locations: Iterable[Location]) -> None:
        for chunk in {location.frame.chunk for location in locations}:
            self._take(chunk)
            known = self._known.get(chunk, [])
            left = [location for location in known if location not in self._excluded]
            self._made -= len(known) - len(left)
            self._known[chunk] = left
            self._many.pop(chunk, None)

    def forget_made(self) -> None:
        """Forget the frames that were made from columns; they are made again when asked for."""
        for pack in list(self._packs.values()):
            pack.forget_made()

    def retain(self, packs: Iterable[PackId]) -> None:
        """Forget the frames of all packs but these."""
        kept, known = set(packs), FrameTable()
        known._excluded = {location for location in self._excluded if location.pack in kept}
        known._packs, known._in_pack = self._packs, self._in_pack
        known._drop_packs(self._packs.keys() - kept)
        made = (location for found in self._known.values() for location in found)
        known.add(location for location in made if location.pack in kept)
        known._to_note = list(known._packs.values())
        self._excluded, self._many = known._excluded, known._many
        self._unknown_bases, self._made = known._unknown_bases, known._made
        self._packs, self._in_pack = known._packs, known._in_pack
        self._to_note = known._to_note
        self._known = known._known  # one assignment, because other threads read without a lock
        self.version += 1

    def _drop_packs(self, packs: AbstractSet[PackId]) -> set[PackId]:
        """Forget the frames of these packs that were never made; return the packs that had some."""
        self._packs = {pack: found for pack, found in self._packs.items() if pack not in packs}
        old = self._in_pack
        self._in_pack = {chunk: own for chunk, own in old.items() if own.pack not in packs}
        return {own.pack for own in old.values()} & packs

    def forget(self, kept: Collection[ChunkId], packs: Container[PackId]) -> set[PackId]:
        """Forget all frames of other chunks than `kept`, except those in some packs.

        Chains that lead through kept chunks alone stay as they are.

        Returns:
            The packs of the frames that were forgotten.
        """
        for chunk in self._in_pack.keys() & self._known.keys():
            self._take(ChunkId(chunk))
        gone = {pack for pack in self._packs if pack not in packs}
        for chunk in kept:
            own = self._in_pack.get(chunk)
            if own is not None and own.pack in gone:
                self._take(chunk)
        thinned = self._drop_packs(gone)
        for chunk, found in list(self._known.items()):
            if chunk in kept or any(location.pack in packs for location in found):
                continue
            thinned.update(location.pack for location in found)
            self._made -= len(found)
            del self._known[chunk]
            self._many.pop(chunk, None)
        bases = {location.frame.base for known in self._known.values() for location in known}
        self._unknown_bases = {base for base in bases if base and base not in self}
        self._to_note = list(self._packs.values())
        return thinned

    def clear(self) -> None:
        """Forget all frames and exclusions. Frames in doubt are in doubt when added again."""
        self._known.clear()
        self._packs, self._in_pack = {}, {}
        self._many.clear()
        self._excluded.clear()
        self._unknown_bases.clear()
        self._to_note.clear()
        self._made = 0
        self._least_whole.clear()
        self.version += 1


def _is_among(suspects: set[Suspect], location: Location) -> bool:
    return not suspects.isdisjoint((location.suspect, Suspect(location.pack, None)))
