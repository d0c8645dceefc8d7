"""A table of frames by chunk, filled from the indexes of packs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from casweights.database.pack_search import PackSearch
from casweights.database.packs import PackLocations
from casweights.ids import ChunkId, Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from casweights.database.pack_rows import PackRows
    from casweights.format.pack import Frame, Location
    from casweights.ids import PackId

# Frames of one chunk up to which a search through the list is faster than a set. Honest stores
# rarely have more; forged ones may have any number.
FEW_FRAMES = 8
_IN_COLUMNS = 4  # frames of an index that was read take the memory of one that was added singly


class FrameTable:
    """The known frames of each chunk, and which of them are excluded or in doubt.

    *Excluded* frames were found damaged by this process and count as missing. Frames *in doubt*
    have a finding, and are used only where no other chain exists.

    The frames of a pack that was read stay in the columns of its index until they are asked for,
    see `PackSearch`. *Single* frames may be added, too, also those of a pack that is read later.

    One thread at a time may change a table, under the lock of its owner. Other threads may read
    it at the same time, and see the state before or after each change.

    Attributes:
        version: A number that grows with every change that may open or close chains to known
            chunks, except for exclusions and for chunks that are forgotten. Also with each `tidy`.
        has_derived: Whether any frame was added that is derived.
        exclusions: All excluded frames, in the order of exclusion; only ever appended to, so that
            a `ChainFinder` can apply those that are new to it.
    """

    def __init__(self) -> None:
        self._packs = PackSearch()
        self._single: dict[ChunkId, list[Location]] = {}  # without excluded ones
        self._many: dict[ChunkId, set[Location]] = {}  # the same, for chunks with many frames
        self._excluded: set[Location] = set()
        self._damaged: set[Suspect] = set()  # what findings are about
        self._doubted: set[Suspect] = set()  # the same, and the packs that lie aside
        self._sought: set[ChunkId] = set()  # by finders, since the last change of `version`
        self._least_whole: dict[int, int] = {}  # by raw size; frames that are forgotten count, too
        self._count = 0  # of the frames in `_single`
        self.version = 0
        self.has_derived = False
        self.exclusions: list[Location] = []

    def __contains__(self, chunk: object) -> bool:
        if chunk in self._single:
            return True
        return isinstance(chunk, ChunkId) and bool(self._packs.of(chunk))

    def __iter__(self) -> Iterator[ChunkId]:
        """Iterate over the chunks that have a known frame."""
        return iter([*self._single, *map(ChunkId, _chunks(self._packs) - self._single.keys())])

    @property
    def size(self) -> int:
        """Number of frames that are known and not excluded, about; see `_IN_COLUMNS`."""
        return self._count + sum(map(len, self._packs)) // _IN_COLUMNS

    def packs(self) -> set[PackId]:
        """Return the packs of all frames that are not excluded."""
        packs = {location.pack for found in self._single.values() for location in found}
        return packs.union(pack.pack for pack in self._packs)

    def pack(self, pack: PackId) -> PackLocations | None:
        """Return the frames that came with the index of a pack, including the excluded ones."""
        return self._packs.get(pack)

    def rows(self) -> PackRows:
        """Return the frames that came with the indexes of packs, including the excluded ones."""
        return self._packs.rows()

    def scattered(self) -> Iterator[Location]:
        """Yield all frames that `pack` does not return, including the excluded ones."""
        single = (location for found in list(self._single.values()) for location in list(found))
        return (at for at in (*single, *self._excluded) if not self._is_in_pack(at))

    def _is_in_pack(self, location: Location) -> bool:
        """Whether a frame came with the index of its pack."""
        if self._packs.get(location.pack) is None:
            return False
        return location in self._packs.of(location.frame.chunk)

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
        single, found = self._single.get(chunk, ()), self._packs.of(chunk)
        if not found:
            return single
        if self._excluded:
            found = [location for location in found if location not in self._excluded]
        return list(dict.fromkeys([*single, *found])) if single else found

    def seek(self, chunk: ChunkId) -> None:
        """Note that a finder looks for a chain that leads through a chunk.

        It must call this before it looks at the frames of the chunk.
        """
        self._sought.add(chunk)

    def least_whole(self, raw_size: int) -> int:
        """Return a number of bytes that no known whole frame of this raw size is below."""
        return self._least_whole.get(raw_size, 0)

    def _note_start(self, frame: Frame) -> None:
        """Note what a frame is that may begin a chain, before it can be found."""
        if frame.roots:
            self.has_derived = True
        elif frame.base is None:
            self._note_whole(frame.raw_size, frame.size)

    def _note_whole(self, raw_size: int, size: int) -> None:
        """Note the size of a whole frame, before the frame can be found."""
        least = self._least_whole.get(raw_size)
        if least is None or size < least:
            self._least_whole[raw_size] = size
            if least is not None:
                self._change()  # finders rely on the sizes that they have seen

    def _change(self) -> None:
        """Let all finders discard what they have found."""
        self._sought.clear()  # before the version: what a finder of the new one seeks is kept
        self.version += 1

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
            self._change()

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
        # The version stays the same for frames of chunks that this call added: finders have not
        # looked for chains to them. A commit adds many such frames, and finders keep their results.
        new: set[ChunkId] = set()
        for location in locations:
            chunk = location.frame.chunk
            if location in self._excluded or self._has(location):
                continue
            is_new = chunk not in self
            if is_new:
                new.add(chunk)
            self._note_start(location.frame)
            self._single.setdefault(chunk, []).append(location)
            self._count += 1
            if chunk not in new or chunk in self._sought:
                self._change()

    def _add_pack(self, pack: PackLocations) -> None:
        """Add all frames of a pack, and make none."""
        if self._packs.get(pack.pack) is None:
            for raw_size, size in pack.frames.whole_sizes().items():
                self._note_whole(raw_size, size)
            self.has_derived |= pack.frames.has_derived
            self._packs.add(pack)
            self._change()

    def _has(self, location: Location) -> bool:
        """Whether a frame is known; if not, the caller adds it next."""
        chunk = location.frame.chunk
        if self._is_in_pack(location):
            return True
        known = self._single.get(chunk, ())
        if len(known) < FEW_FRAMES:
            return location in known
        many = self._many.get(chunk)
        if many is None:
            many = self._many[chunk] = set(known)
        if location in many:
            return True
        many.add(location)
        return False

    def move(self, locations: Iterable[Location], gone: AbstractSet[PackId]) -> bool:
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
            chunk = location.frame.chunk
            if chunk not in self:
                complete = False
                continue
            known = self._single.get(chunk, ())
            moved = next((_moved(at, location) for at in known if at.pack in gone), location)
            self._note_start(moved.frame)
            left = [at for at in known if at.pack not in gone]
            self._set_single(chunk, left if self._has(moved) else [*left, moved])
        self._packs = self._packs.without(gone)
        self._change()
        return complete

    def _set_single(self, chunk: ChunkId, locations: list[Location]) -> None:
        """Replace the single frames of a chunk."""
        self._count += len(locations) - len(self._single.get(chunk, ()))
        self._single[chunk] = locations
        self._many.pop(chunk, None)

    def exclude(self, locations: Iterable[Location]) -> None:
        """Count frames as missing. The time grows with the number of frames of their chunks."""
        locations = list(locations)
        self._excluded.update(locations)
        for chunk in {location.frame.chunk for location in locations}:
            known = self._single.get(chunk, ())
            self._set_single(chunk, [at for at in known if at not in self._excluded])
        self.exclusions += locations

    def tidy(self) -> None:
        """Forget the frames that were made from columns, and what finders have looked for.

        Frames are made again when they are asked for, and finders search again.
        """
        self._packs.forget_found()
        self._change()

    def retain(self, packs: Iterable[PackId]) -> None:
        """Forget the frames of all packs but these."""
        kept = set(packs)
        left = {
            chunk: [location for location in found if location.pack in kept]
            for chunk, found in self._single.items()
        }
        self._packs = self._packs.without({p.pack for p in self._packs if p.pack not in kept})
        self._replace_single({chunk: found for chunk, found in left.items() if found})
        self._excluded = {location for location in self._excluded if location.pack in kept}
        self._change()

    def _replace_single(self, single: dict[ChunkId, list[Location]]) -> None:
        """Replace all single frames, by one assignment: other threads read without a lock."""
        self._single, self._many = single, {}
        self._count = sum(map(len, single.values()))

    def forget(self, kept: Collection[ChunkId], packs: Container[PackId]) -> set[PackId]:
        """Forget all frames of other chunks than `kept`, except those in some packs.

        Chains that lead through kept chunks alone stay as they are.

        Returns:
            The packs of the frames that were forgotten.
        """
        gone = [pack for pack in self._packs if pack.pack not in packs]
        held = [pack for pack in self._packs if pack.pack in packs]
        kept = {*kept, *(chunk for chunk in self._single if self._is_in(packs, chunk))}
        if gone and held:
            kept |= set(map(ChunkId, _chunks(gone) & _chunks(held)))
        old, single = self._single, self._with_frames_of({pack.pack for pack in gone}, kept)
        thinned = {at.pack for chunk, found in old.items() if chunk not in kept for at in found}
        left = Counter(at.pack for found in single.values() for at in found)
        thinned.update(pack.pack for pack in gone if left[pack.pack] < len(pack))
        self._replace_single(single)
        self._packs = self._packs.without({pack.pack for pack in gone})
        if not held:  # no frame of a pack builds on what a finder seeks
            singles = (location for found in single.values() for location in found)
            self._sought.intersection_update(base for at in singles for base in at.frame.bases)
        return thinned

    def _is_in(self, packs: Container[PackId], chunk: ChunkId) -> bool:
        """Whether some packs have a frame of a chunk."""
        return any(location.pack in packs for location in self.all_frames(chunk))

    def _with_frames_of(
        self, packs: Container[PackId], chunks: Iterable[ChunkId]
    ) -> dict[ChunkId, list[Location]]:
        """Return the single frames of some chunks, and their frames in the indexes of packs."""
        found: dict[ChunkId, list[Location]] = {}
        for chunk in chunks:
            listed = (at for at in self._packs.of(chunk) if at.pack in packs)
            added = [at for at in listed if at not in self._excluded]
            if added or chunk in self._single:
                found[chunk] = list(dict.fromkeys([*self._single.get(chunk, ()), *added]))
        return found

    def clear(self) -> None:
        """Forget all frames and exclusions. Frames in doubt are in doubt when added again."""
        self._packs = PackSearch()
        self._replace_single({})
        self._excluded.clear()
        self._least_whole.clear()
        self._change()


def _moved(old: Location, new: Location) -> Location:
    """Return a location with the IDs in memory of the one that it replaces, if they are equal.

    They are most of what a frame takes in memory, and are shared with manifests and other frames.
    """
    moved = new._replace(frame=old.frame.at(new.frame.offset))
    return moved if moved == new else new


def _is_among(suspects: set[Suspect], location: Location) -> bool:
    return not suspects.isdisjoint((location.suspect, Suspect(location.pack, None)))


def _chunks(packs: Iterable[PackLocations]) -> set[bytes]:
    return {chunk for pack in packs for chunk in pack.frames.chunks}
