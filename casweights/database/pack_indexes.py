"""The frames that the indexes of packs list, and how a store is searched for chunks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from casweights.database.known_chunks import KnownChunks
from casweights.database.known_packs import KnownPacks, ReadPack
from casweights.database.pack_rows import PackRows
from casweights.database.packs import PackContents, PackLocations, list_packs, try_read_pack
from casweights.database.segments import Segments
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.ids import PackId, SegmentId, Suspect
from casweights.stores.base import ObjectInfo
from casweights.system.clocks import uptime
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from casweights.database.findings import Findings
    from casweights.database.merged import Merged
    from casweights.format.pack import Location
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore

    Find = Callable[[Sequence[str]], Sequence[ObjectInfo]]

_READERS = 16  # threads that read indexes; they wait for the network, so more than the cores
_LISTING_LAG = 300.0  # seconds after which a listing over a network shows a new pack for sure
_MAX_LISTINGS = 3  # a repack may delete packs between their listing and the read of their indexes
_WHOLE_FRAMES = 8192  # of a pack, about 5 MiB: larger ones are kept in part by a search


class PackIndexes(KnownChunks):
    """The chunks in the packs whose indexes were read. `ChunkIndex` says how to use it.

    Args:
        store: The store that contains the packs.
        findings: Receives what turns out to be damaged; None to record none.
    """

    def __init__(self, store: ObjectStore, findings: Findings | None = None) -> None:
        super().__init__()
        self._store = store
        self._findings = findings
        self._packs = KnownPacks()
        self._packs_in_doubt: set[PackId] = set()
        self._found: set[Suspect] = set()  # what findings are about
        self._aside: set[PackId] = set()  # packs that were set aside, and read there
        self._lacks_aside = False  # whether some of them were dropped, as no listing shows them
        self._segments = Segments(store)
        self._listed: dict[str, ObjectInfo] = {}  # packs, at the last listing

    @property
    def damaged(self) -> Mapping[str, CasweightsError]:
        """The packs whose index cannot be read or that have a damaged frame, with the reason."""
        return self._packs.damaged

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names of the packs whose index cannot be read, so that their frames are unknown."""
        return tuple(self._packs.unreadable())

    @property
    def ignored_segments(self) -> Mapping[str, CasweightsError]:
        """The segments that are not used, by name, with the reason."""
        return self._segments.ignored

    def load(self, *, exact: bool = False) -> None:
        """Read the indexes of all packs that are not known; forget those that are gone.

        Args:
            exact: Whether to forget every pack that the listing does not show. By default, packs
                of the last minutes stay known where listings lag.
        """
        with self._lock:
            for _ in range(_MAX_LISTINGS):
                self._list()
                if self._read_rest():
                    break
            # Drop packs after reading the new ones, so that a chunk that a repack moved to
            # another pack is known all the time.
            self._drop_lost(exact=exact)

    def survey(self, limit: int | None = None, *, has_segments: bool = False) -> None:
        """Read the indexes of the new packs that no segment covers; forget the packs that are gone.

        `look_up` finds chunks in the other packs.

        Args:
            limit: The largest number of new packs to read; if more appeared, none is read. With a
                limit, packs whose frames were forgotten are not read again either.
            has_segments: Whether the segments were listed a moment ago.
        """
        with self._lock:
            for number in range(_MAX_LISTINGS):
                self._list()
                if number or not has_segments:
                    self._list_segments()
                if self._read_uncovered(limit):
                    break
            self._drop_lost(exact=False)

    def look_up(self, chunks: Iterable[ChunkId]) -> bool:
        """Read what leads to these chunks in packs that a segment covered at the last `survey`.

        Of large packs, only the frames that the chunks need are kept in memory. Afterwards the
        chunks are known that `load` would find, unless a segment is wrong or packs were deleted.

        Returns:
            Whether none of these packs was deleted since then.
        """
        with self._lock:
            return self._follow_segments(chunks, self._in_listing)

    def trace(self, chunks: Iterable[ChunkId]) -> None:
        """Read what leads to these chunks in packs that segments name; list no packs.

        Segments cover what `maintain` has merged. So the packs into which those of a snapshot were
        merged are found by a few requests, however many packs there are.
        """
        with self._lock:
            self._list_segments()
            self._follow_segments(chunks, self._in_store)

    def _follow_segments(self, chunks: Iterable[ChunkId], find: Find) -> bool:
        """Read what leads to chunks in packs that segments name.

        Args:
            chunks: The chunks.
            find: Returns those packs that exist.

        Returns:
            Whether none of the packs that `find` returned was gone.
        """
        complete, goal = True, list(chunks)
        searched: set[ChunkId] = set()
        while wanted := self._lacking(goal) - searched:
            searched |= wanted
            complete &= self._read_covered(wanted, find)
        return complete

    def search(self, chunks: Iterable[ChunkId], limit: int | None = None) -> None:
        """`survey` the packs, and `look_up` chunks."""
        with self._lock:
            self.survey(limit)
            self.look_up(chunks)

    def _load_rest(self) -> None:
        """Do what `load` does, by the last listing while none of its packs is gone."""
        if not self._read_rest():
            self.load()

    def _list(self) -> None:
        self._listed = {info.name: info for info in list_packs(self._store)}

    def _list_segments(self) -> None:
        self._segments.refresh()
        self._segments.ignore(self._doubted_segments())

    def _in_listing(self, packs: Sequence[str]) -> list[ObjectInfo]:
        """Return those of these packs that the last listing shows."""
        return [self._listed[name] for name in packs if name in self._listed]

    def _in_store(self, packs: Sequence[str]) -> list[ObjectInfo]:
        """Return those of these packs that the store has now."""
        wanted = [name for name in packs if name not in self._packs.absent]
        return [ObjectInfo(*found) for found in self._store.sizes(wanted).items()] if wanted else []

    def _read_rest(self) -> bool:
        """Read all listed packs that are not known; return whether none of them was gone."""
        unread = [i for name, i in self._listed.items() if name not in self._packs.read]
        return self._read(unread, are_all=True)

    def _read_uncovered(self, limit: int | None) -> bool:
        """Read the packs that are not known and that no segment covers, at most `limit`.

        Returns:
            Whether none of them was gone.
        """
        known = self._packs.read.keys() | (() if limit is None else self._packs.thinned)
        unread = [
            info
            for name, info in self._listed.items()
            if name not in known and not self._segments.covers(names.pack_of(name))
        ]
        return (limit is not None and len(unread) > limit) or self._read(unread)

    def _lacking(self, chunks: Sequence[ChunkId]) -> set[ChunkId]:
        """Return those of these chunks that cannot be rebuilt, and those that they build on."""
        found: set[ChunkId] = set()
        todo = list(chunks)
        while todo:
            having = self.having(todo)
            new = {c for c, known in zip(todo, having, strict=True) if known is None} - found
            found |= new
            todo = [
                base
                for chunk in new
                for location in self._table.all_frames(chunk)
                for base in location.frame.bases
            ]
        return found

    def _read_covered(self, wanted: set[ChunkId], find: Find) -> bool:
        """Read the packs that contain these chunks according to the segments, if they exist.

        Returns:
            Whether none of them was gone.
        """
        before = self._segments.version
        packs, damaged = self._segments.find(wanted)
        self._note({_suspect(name): why for name, why in damaged.items()})
        if self._segments.version != before:
            self._read_uncovered(None)
        unread = [
            name
            for pack, chunks in packs.items()
            if (name := names.pack_name(pack)) not in self._packs.read
            and name not in self._packs.damaged
            and not all(self._table.has_frame(chunk, pack) for chunk in chunks)
        ]
        return self._read(find(unread), wanted)

    def _doubted_segments(self) -> dict[str, CasweightsError]:
        """Return the listed segments that a finding is about, with the reason not to use them."""
        found: dict[str, CasweightsError] = {}
        for index in self._segments.indexes:
            if PackId(index.segment) in self._packs_in_doubt:
                found[index.name] = corrupt(index.name, "a finding says so")
        return found

    def _note(self, damage: Mapping[Suspect, CasweightsError]) -> None:
        """Keep findings about what is damaged, for other users of the store."""
        bad = {s: str(why) for s, why in damage.items() if isinstance(why, IntegrityError)}
        if bad and self._findings is not None:
            self._findings.note(bad)

    def _read(
        self,
        packs: Sequence[ObjectInfo],
        wanted: Collection[ChunkId] | None = None,
        *,
        is_proof: bool = True,
        are_all: bool = False,
    ) -> bool:
        """Read the indexes of these packs. The caller holds the lock.

        Args:
            packs: The packs.
            wanted: Of large packs, keep only the frames that these chunks need; None keeps all.
            is_proof: Whether a pack that can be read is in its place.
            are_all: Whether they are all that the store has, and may be very many.

        Returns:
            Whether none of the packs was deleted since its listing.
        """
        complete = True
        for info, result in self._indexes(packs):
            if isinstance(result, NotFoundError):
                complete = False
            elif isinstance(result, CasweightsError):
                self._packs.damaged[info.name] = result
            else:
                if are_all:
                    result.compact()
                self._add_read(result, wanted, is_proof=is_proof)
        return complete

    def _indexes(
        self, packs: Sequence[ObjectInfo]
    ) -> Iterator[tuple[ObjectInfo, PackContents | CasweightsError]]:
        """Read the indexes of packs, many at the same time where that is faster."""
        read = partial(try_read_pack, self._store)
        if len(packs) < 2 or self._store.capabilities.cheap_reads:
            yield from zip(packs, map(read, packs), strict=True)
            return
        # Threads of its own, because callers run on the database's workers, and would wait for
        # threads that are all in use.
        with Workers(_READERS) as workers:
            yield from zip(packs, workers.map(read, packs), strict=True)

    def _drop_lost(self, *, exact: bool) -> None:
        """Forget the known packs that the last listing does not show, and their frames."""
        lags = self._store.capabilities.listing_lags and not exact
        oldest = uptime() - (_LISTING_LAG if lags else 0.0)
        lost = set(self._packs.lost(self._listed, oldest))
        if lost:
            self._lacks_aside |= not self._aside.isdisjoint(map(names.pack_of, lost))
            self.drop(lost)

    def add(
        self,
        pack_name: str,
        size: int,
        locations: Iterable[Location],
        generation: int = 0,
        *,
        is_proof: bool = True,
    ) -> None:
        """Add a pack whose content is known, so that its index is not read.

        Args:
            pack_name: The pack's name.
            size: Number of bytes of the pack.
            locations: All frames of the pack.
            generation: The pack's generation.
            is_proof: Whether the store has it under its own name.
        """
        with self._lock:
            self._table.add(locations)
            self._packs.read[pack_name] = ReadPack(size, generation, uptime(), is_proof)
            self._packs.damaged.pop(pack_name, None)
            if is_proof and (pack := names.pack_of(pack_name)) in self._aside:
                self._aside.remove(pack)  # it came back
                self._doubt()

    def _doubt(self) -> None:
        """Put the frames in doubt that findings are about, and those of packs that lie aside."""
        self._table.doubt(self._found, self._aside)

    def _add_read(
        self, pack: PackContents, wanted: Collection[ChunkId] | None, *, is_proof: bool
    ) -> None:
        """Add a pack that was read; of a large one, only what the wanted chunks need, if any."""
        found = pack.locations
        if wanted is None or len(found) <= _WHOLE_FRAMES or not isinstance(found, PackLocations):
            size, generation = pack.info.size, pack.generation
            self.add(pack.info.name, size, found, generation, is_proof=is_proof)
        else:
            self._add_needed(pack, found, wanted)

    def _add_needed(
        self, pack: PackContents, locations: PackLocations, wanted: Collection[ChunkId]
    ) -> None:
        """Add those frames of a pack that some chunks need; count the others as forgotten.

        Args:
            pack: The pack.
            locations: Its frames.
            wanted: The chunks.
        """
        todo = set(wanted)
        seen: set[ChunkId] = set()
        rows = PackRows([locations])
        while todo:
            seen.add(chunk := todo.pop())
            needed = rows.of(chunk)
            self._table.add(needed)
            todo |= {base for at in needed for base in at.frame.bases} - seen
        made = ReadPack(pack.info.size, pack.generation, uptime())
        self._packs.thinned[pack.info.name] = made

    def replace(self, merged: Merged) -> None:
        """Note that packs were merged, which saves finding it out by a listing.

        Of the new packs, only the frames of known chunks are remembered.
        """
        with self._lock:
            for pack in merged.new:
                complete = self._table.move(pack.locations, merged.gone)
                known = self._packs.read if complete else self._packs.thinned
                known[pack.info.name] = ReadPack(pack.info.size, pack.generation, uptime())
            self._packs.replace(merged)

    def drop(self, packs: Collection[str]) -> None:
        """Forget packs that were deleted, and the frames in them.

        Args:
            packs: Their names.
        """
        with self._lock:
            self._packs.drop(packs)
            self._table.retain(self._packs.with_frames())

    def contents(self) -> list[PackContents]:
        """Return the packs that were read, with all their frames, including damaged ones."""
        with self._lock:
            read = sorted(self._packs.read.items())
            found: dict[str, list[Location]] = {}
            for location in self._table.scattered():
                found.setdefault(names.pack_name(location.pack), []).append(location)
            return [
                PackContents(
                    ObjectInfo(name, pack.size),
                    pack.generation,
                    self._with_others(names.pack_of(name), found.get(name, [])),
                )
                for name, pack in read
            ]

    def _with_others(self, pack: PackId, others: list[Location]) -> Sequence[Location]:
        """Return the frames of a pack's index, and others of the pack."""
        whole = self._table.pack(pack)  # as columns, a fifth of the memory of locations
        if whole is None:
            return others
        return [*whole, *others] if others else whole

    def pack_size(self, pack: PackId) -> int:
        """Return the number of bytes of a pack that was read; 0 for other packs."""
        name = names.pack_name(pack)
        read = self._packs.read.get(name) or self._packs.thinned.get(name)
        return 0 if read is None else read.size


def _suspect(segment: str) -> Suspect:
    """Return what a finding about a segment of this name is about."""
    return Suspect(PackId(names.parse_id(SegmentId, names.SEGMENTS, segment)), None)
