"""The index of a store: which chunks it has, and where their frames are."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING

from casweights.database.known_chunks import KnownChunks
from casweights.database.known_packs import KnownPacks, ReadPack
from casweights.database.packs import PackContents, list_packs, try_read_pack
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.fields import parse_id
from casweights.ids import PackId
from casweights.stores.base import ObjectInfo
from casweights.stores.optional import SupportsLocators
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from casweights.database.chains import Chain, ChainFinder, Node
    from casweights.database.findings import Findings
    from casweights.format.pack import Location
    from casweights.format.snapshot import PackTable
    from casweights.ids import ChunkId, Suspect
    from casweights.stores.base import ObjectStore

_READERS = 16  # threads that wait for indexes
_LISTING_LAG = 300.0  # seconds for which a listing behind a network may not show a new pack
_MAX_LISTINGS = 3  # a repack may delete packs between their listing and the read of their indexes
_FRESH_SECONDS = 1.0  # for which a listing answers for chunks that are missing
_FRESH_FACTOR = 8  # or for this many times as long as it took, if that is longer
_SPARE_PACKS = 256  # indexes that stay in memory although no chunk of the last version needs them


class ChunkIndex(KnownChunks):
    """Where the chunks of a store are, learned from the indexes of its packs.

    The order of calls:

    1. `learn` what a snapshot says about its chunks. This reads nothing, and may be out of date.
    2. `prepare` reads the packs of chunks that will be wanted, all at once. It may be left out.
    3. `find_chain` reads more packs until a chunk can be rebuilt: the pack that a snapshot named
       for it, then all packs that snapshots named, then all that a listing shows. What is missing
       then stays missing until `learn` or `expect`, or until the listing is old.
    4. `distrust` frames that turn out to be damaged, and call `find_chain` again for other chains.
    5. `retain` the chunks of the newest version, between one version and the next.

    Callers that must know every chunk call `load` in place of these. Writers `add` the packs that
    they have written. `heed` and `reconsider` may come at any time.

    May be used from several threads at once. One lock guards all changes, and is held while
    indexes are read, so that no index is read twice. Look-ups do not wait for it.

    What reads the store raises `StoreError`. Packs that are damaged or gone raise nothing; they
    stand in `damaged` or count as absent, and `find_chain` returns None if a chunk needs them.

    Args:
        store: Where the packs are.
        findings: Told of frames that turn out to be damaged.
    """

    def __init__(self, store: ObjectStore, findings: Findings | None = None) -> None:
        super().__init__()
        self._store = store
        self._locators = store.ability(SupportsLocators)
        self._findings = findings
        self._packs = KnownPacks()
        self._packs_in_doubt: set[PackId] = set()
        self._enough_packs = _SPARE_PACKS
        self.expect()

    @property
    def damaged(self) -> Mapping[str, CasweightsError]:
        """Packs whose index cannot be read, or that have a damaged frame, with the reason."""
        return self._packs.damaged

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names of the packs whose index cannot be read, so that nothing in them is known."""
        return tuple(self._packs.unreadable())

    def learn(self, table: PackTable) -> None:
        """Remember in which packs a snapshot's chunks and their bases should be."""
        self.expect()
        self._packs.hint(table)
        if self._locators is not None:
            for pack, locator in table.places.items():
                self._locators.use_locator(names.pack_name(pack), locator)

    def expect(self) -> None:
        """Look again for chunks that are missing, because they may have come."""
        self._exhausted = -1, 0.0
        self._packs.absent = set()
        self._others = 0  # hinted packs to read with the next one

    def prepare(self, chunks: Iterable[ChunkId]) -> None:
        """Read the hinted packs of these chunks, all at once."""
        self._read_packs(self._packs.packs_of(chunks))

    def prepare_all(self) -> None:
        """Read all hinted packs."""
        self._read_packs(self._packs.hinted())

    def load(self, limit: int | None = None, *, exact: bool = False) -> None:
        """Read the indexes of all packs that appeared since the last time.

        Args:
            limit: If more packs appeared, read none of them.
            exact: Whether packs that the listing does not show are gone for sure. Behind a
                network they may also be too new for it.
        """
        with self._lock:
            for _ in range(_MAX_LISTINGS):
                listed = {info.name: info for info in list_packs(self._store)}
                unread = [info for name, info in listed.items() if name not in self._packs.read]
                if (limit is not None and len(unread) > limit) or self._read(unread):
                    break
            # Last, so that a chunk that has moved to another pack is known all the time.
            self._drop_lost(listed, exact=exact)

    def _read(self, packs: list[ObjectInfo]) -> bool:
        """Read the indexes of these packs; False if some were deleted since they were listed."""
        complete = True
        if not packs:
            return complete

        def read(info: ObjectInfo) -> PackContents | CasweightsError:
            return try_read_pack(self._store, info)

        with Workers(_READERS) as workers:  # of its own: callers are on the store's workers
            for info, result in zip(packs, workers.map(read, packs), strict=True):
                if isinstance(result, NotFoundError):
                    complete = False
                elif isinstance(result, CasweightsError):
                    self._packs.damaged[info.name] = result
                else:
                    self.add(info.name, info.size, result.locations, result.generation)
        return complete

    def _drop_lost(self, listed: Collection[str], *, exact: bool) -> None:
        """Forget packs that are gone, and the frames in them."""
        lags = self._store.capabilities.listing_lags and not exact
        oldest = time.monotonic() - (_LISTING_LAG if lags else 0.0)
        lost = set(self._packs.lost(listed, oldest))
        if lost:
            self._packs.drop(lost)
            self._table.retain(parse_id(PackId, names.PACKS, name) for name in self._packs.read)

    def add(
        self, pack_name: str, size: int, locations: Iterable[Location], generation: int = 0
    ) -> None:
        """Add all frames of a pack of `size` bytes, which need not be read any more."""
        with self._lock:
            self._table.add(locations)
            self._packs.read[pack_name] = ReadPack(size, generation, time.monotonic())
            self._packs.damaged.pop(pack_name, None)

    def distrust(self, damage: Mapping[Location, CasweightsError]) -> None:
        """Count frames as missing; their chunks may be written again.

        Their packs count as damaged, which other users of the store are told. Packs that are gone
        do not: others may have rewritten them.

        Args:
            damage: The frames, with what is wrong with each.
        """
        with self._lock:
            self._table.exclude(damage)
        for location, why in damage.items():
            if not isinstance(why, NotFoundError):
                self._packs.damaged[names.pack_name(location.pack)] = why
        bad = {
            at.suspect: str(why) for at, why in damage.items() if isinstance(why, IntegrityError)
        }
        if bad and self._findings is not None:
            self._findings.note(bad)

    def heed(self, suspects: set[Suspect]) -> None:
        """See `KnownChunks.heed`."""
        with self._lock:
            self._packs_in_doubt = {suspect.pack for suspect in suspects}
            super().heed(suspects)

    def is_damaged(self, pack: PackId) -> bool:
        """Whether anything in a pack is damaged or in doubt."""
        return names.pack_name(pack) in self._packs.damaged or pack in self._packs_in_doubt

    def reconsider(self) -> None:
        """If anything is damaged, read all indexes again: it may be repaired by the next time."""
        with self._lock:
            if self._packs.damaged:
                self._table.clear()
                self._packs.forget_indexes()

    def retain(self, chunks: Iterable[ChunkId]) -> bool:
        """Forget what is not needed to read these chunks, once there is much of it.

        Keeps memory bounded for long-running publishers and subscribers. What is forgotten is
        found again when snapshots that need it are learned.

        Returns:
            Whether anything was forgotten.
        """
        with self._lock:
            if len(self._packs.read) < self._enough_packs:
                return False
            chains = [chain for chunk in chunks if (chain := self._finder.chain(chunk))]
            seen: set[Node] = set()
            kept = {frame.pack for chain in chains for frame in chain.back(seen)}
            self._table.retain(kept)
            self._packs.retain(kept)
            self._enough_packs = 2 * len(self._packs.read) + _SPARE_PACKS
            return True

    def contents(self) -> list[PackContents]:
        """The packs that were read, with all their frames, damaged ones included."""
        with self._lock:
            read = sorted(self._packs.read.items())
            found: dict[str, list[Location]] = {name: [] for name, _ in read}
            for location in self._table.locations():
                found[names.pack_name(location.pack)].append(location)
            return [
                PackContents(ObjectInfo(name, pack.size), pack.generation, found[name])
                for name, pack in read
            ]

    def pack_size(self, pack: PackId) -> int:
        """The bytes of a pack that was read; 0 for others."""
        read = self._packs.read.get(names.pack_name(pack))
        return 0 if read is None else read.size

    def unread_packs(self, chunks: Iterable[ChunkId]) -> tuple[list[str], list[str]]:
        """Hinted packs to read: those of these chunks, and if they have any, all others."""
        own = dict.fromkeys(self._packs.packs_of(chunks))
        others = [pack for pack in self._packs.hinted() if own and pack not in own]
        return self._packs.unread(own), self._packs.unread(others)

    def find_chain(self, chunk: ChunkId, finder: ChainFinder | None = None) -> Chain | None:
        """The cheapest chain to a chunk; further packs are read where that is needed.

        Args:
            chunk: The chunk.
            finder: Finds chains that begin at chunks that the reader has; see `finder`.
        """
        finder = finder or self._finder
        chain = finder.chain(chunk)
        for read_more in (self._read_hinted, self._read_all_hinted, self._read_listed):
            if chain is None:
                read_more(chunk)
                chain = finder.chain(chunk)  # another thread may have read what this takes
        if chain is None and self.has_suspects:
            chain = self._last_resort.chain(chunk)
        return chain

    def _read_hinted(self, chunk: ChunkId) -> None:
        """Read the hinted pack of a chunk, and each time twice as many others with it.

        Every pack may open other chains to the chunks of the packs before it, and what was found
        about those must be found again. So packs are not read one at a time.
        """
        with self._lock:
            pack = self._packs.pack_of(chunk)
            if pack is None or not self._packs.unread([pack]):
                return
            others = (other for other in self._packs.hinted() if self._packs.unread([other]))
            packs = dict.fromkeys([pack, *islice(others, self._others)])
            self._others = 2 * self._others + 1
            self._read_packs(list(packs))

    def _read_all_hinted(self, _: ChunkId) -> None:
        if not self._is_exhausted():
            self._read_packs(self._packs.hinted())

    def _read_listed(self, _: ChunkId) -> None:
        """Read all packs that appeared, unless that was done a moment ago."""
        with self._lock:
            if self._is_exhausted():
                return
            begin = time.monotonic()
            self.load()
            took = time.monotonic() - begin
            fresh = max(_FRESH_SECONDS, _FRESH_FACTOR * took)
            self._exhausted = self._changes, begin + took + fresh

    def _is_exhausted(self) -> bool:
        """Whether all packs were read a moment ago and nothing was forgotten since.

        What is missing now was missing then. A forged version lacks any number of chunks.
        """
        changes, until = self._exhausted
        return changes == self._changes and time.monotonic() < until

    @property
    def _changes(self) -> int:
        """Grows with every change of what is known."""
        return self._table.version + len(self._table.exclusions)

    def _read_packs(self, packs: list[PackId]) -> None:
        """Read the indexes of these packs, except for those that were read or are gone."""
        with self._lock:
            unread = self._packs.unread(packs)
            sizes = self._store.sizes(unread) if unread else {}  # without those rewritten since
            self._packs.absent.update(name for name in unread if name not in sizes)
            self._read([ObjectInfo(name, sizes[name]) for name in unread if name in sizes])
