"""The index of a store: which chunks it contains, and the locations of their frames."""

from __future__ import annotations

import math
import time
import weakref
from itertools import chain, islice
from typing import TYPE_CHECKING

from casweights.database.known_chunks import KnownChunks
from casweights.database.known_packs import KnownPacks, ReadPack
from casweights.database.packs import PackContents, list_packs, try_read_pack
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.stores.base import ObjectInfo
from casweights.stores.optional import SupportsLocators
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from casweights.database.chains import Chain, ChainFinder
    from casweights.database.findings import Findings
    from casweights.format.pack import Location
    from casweights.format.pack_table import PackTable
    from casweights.ids import ChunkId, PackId, Suspect
    from casweights.stores.base import ObjectStore

_READERS = 16  # threads that read indexes; they wait for the network, so more than the cores
_LISTING_LAG = 300.0  # seconds after which a listing over a network shows a new pack for sure
_MAX_LISTINGS = 3  # a repack may delete packs between their listing and the read of their indexes
# Missing chunks are not looked for again within this many seconds of the last listing, or within
# this many times the time that it took, if that is longer: a version may lack any number of them.
_FRESH_SECONDS = 1.0
_FRESH_FACTOR = 8
_SPARE_FRAMES = 8192  # known but not needed before any are forgotten; about 5 MiB
_PACKS_FOR_A_CALL = 64  # that `look` lists for each of its calls, on average
_SPARE_SHARE = 1 / 4  # of the needed frames, in addition: forgetting looks at all of them


class Hold:
    """Keeps an index from forgetting packs, for as long as the hold is referenced.

    It covers the packs that the index reads or is given after the hold was made. Writers need it
    because no snapshot names the packs of a version that is being made.

    Attributes:
        since: When it was made, by the monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self.since = time.monotonic()


class ChunkIndex(KnownChunks):
    """The locations of a store's chunks, learned from the indexes of its packs.

    The order of calls for a reader:

    1. `learn` the pack table of a snapshot: a hint, which may be out of date. It reads nothing.
    2. `prepare`, which is optional, reads the hinted packs of several chunks at once.
    3. `find_chain` reads more packs until a chunk can be rebuilt: first its hinted pack, then all
       hinted packs, then all packs that a listing shows. A chunk that is missing after that stays
       missing until `learn` or `expect` is called, or the listing is more than a second old.
    4. `distrust` the frames that turn out to be damaged, and call `find_chain` again, which then
       returns another chain or None.
    5. `retain` the chunks of the last versions, before the next one is read.

    Callers that must know every chunk call `load` instead of steps 1 to 3. Writers take a `hold`
    before they rely on a chunk, and call `add` for each pack that they have written. `heed` and
    `reconsider` may be called at any time.

    Safe for use from several threads. One lock guards all changes. It is held while indexes are
    read, so that no index is read twice; look-ups of known chunks do not wait for it.

    Methods that read the store raise `StoreError` if it cannot be read. A pack that is damaged or
    gone raises nothing: it appears in `damaged` or counts as absent, and `find_chain` returns None
    for the chunks that need it.

    Args:
        store: The store that contains the packs.
        findings: Receives the frames that turn out to be damaged; None to record none.
    """

    def __init__(self, store: ObjectStore, findings: Findings | None = None) -> None:
        super().__init__()
        self._store = store
        self._locators = store.ability(SupportsLocators)
        self._findings = findings
        self._packs = KnownPacks()
        self._packs_in_doubt: set[PackId] = set()
        self._enough_frames = _SPARE_FRAMES
        self._listed = 0  # packs, at the last listing
        self._calls = 0  # of `look`, since then
        self._holds: weakref.WeakSet[Hold] = weakref.WeakSet()
        self.expect()

    @property
    def damaged(self) -> Mapping[str, CasweightsError]:
        """The packs whose index cannot be read or that have a damaged frame, with the reason."""
        return self._packs.damaged

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names of the packs whose index cannot be read, so that their frames are unknown."""
        return tuple(self._packs.unreadable())

    def learn(self, table: PackTable) -> None:
        """Remember the packs that a snapshot names for its chunks and their bases."""
        self.expect()
        with self._lock:
            self._packs.hint(table, self._table)
        if self._locators is not None:
            for pack, locator in table.places.items():
                self._locators.use_locator(names.pack_name(pack), locator)

    def expect(self) -> None:
        """Look for missing chunks again at the next call of `find_chain`: packs may be new."""
        self._exhausted = -1, 0.0  # `_changes` is never -1, so the next search reads packs
        self._packs.absent = set()
        self._others = 0  # number of other hinted packs to read together with the next one

    def prepare(self, chunks: Iterable[ChunkId]) -> None:
        """Read the hinted packs of these chunks, all at once."""
        self._read_packs(self._packs.packs_of(chunks))

    def prepare_packs(self, packs: Iterable[PackId]) -> None:
        """Read these packs, all at once."""
        self._read_packs(list(packs))

    def prepare_all(self) -> None:
        """Read all hinted packs."""
        self._read_packs(self._packs.hinted())

    def load(self, limit: int | None = None, *, exact: bool = False) -> None:
        """Read the indexes of all packs that appeared since the last call; forget the lost ones.

        Args:
            limit: The largest number of new packs to read; if more appeared, none is read. With a
                limit, packs whose frames were forgotten are not read again either.
            exact: Whether to forget every pack that the listing does not show. By default, packs
                of the last minutes stay known where listings lag.
        """
        with self._lock:
            for _ in range(_MAX_LISTINGS):
                listed = {info.name: info for info in list_packs(self._store)}
                known = self._packs.read.keys() | (() if limit is None else self._packs.thinned)
                unread = [info for name, info in listed.items() if name not in known]
                if (limit is not None and len(unread) > limit) or self._read(unread):
                    break
            # Drop packs after reading the new ones, so that a chunk that a repack moved to
            # another pack is known all the time.
            self._drop_lost(listed, exact=exact)
            self._listed = len(listed)

    def look(self, limit: int) -> None:
        """Call `load`, but not at every call: rarely if the last listing showed many packs.

        Args:
            limit: As for `load`.
        """
        with self._lock:
            self._calls += 1
            if self._calls * _PACKS_FOR_A_CALL >= self._listed:
                self.load(limit)
                self._calls = 0

    def recheck(self, packs: Iterable[PackId], limit: int | None = None) -> None:
        """Look up packs; if some are gone, list all packs to find where their chunks are now.

        Args:
            packs: The packs to look up.
            limit: As for `load`.
        """
        wanted = list(map(names.pack_name, packs))
        gone = set(wanted) - self._store.present(wanted) if wanted else set()
        if gone:
            with self._lock:
                self._packs.drop(gone)
                self._table.retain(self._packs.with_frames())
                self.load(limit)

    def unproven(self, chunks: Iterable[ChunkId], hold: Hold) -> list[PackId]:
        """Return the packs of these chunks' chains that nothing has shown to exist since a hold.

        The index learned of them earlier or from a snapshot, and they may be gone by now.
        """
        fresh, packs = self._packs.since(hold.since), chain.from_iterable(self.packs(chunks, set()))
        return [pack for pack in dict.fromkeys(packs) if pack not in fresh]

    def _read(self, packs: list[ObjectInfo]) -> bool:
        """Read the indexes of these packs; return False if any pack was deleted since its listing.

        The caller holds the lock.
        """
        complete = True
        if not packs:
            return complete

        def read(info: ObjectInfo) -> PackContents | CasweightsError:
            return try_read_pack(self._store, info)

        # Threads of its own, because callers run on the database's workers, and would wait for
        # threads that are all in use.
        with Workers(_READERS) as workers:
            for info, result in zip(packs, workers.map(read, packs), strict=True):
                if isinstance(result, NotFoundError):
                    complete = False
                elif isinstance(result, CasweightsError):
                    self._packs.damaged[info.name] = result
                else:
                    self.add(info.name, info.size, result.locations, result.generation)
        return complete

    def _drop_lost(self, listed: Collection[str], *, exact: bool) -> None:
        """Forget the known packs that a listing does not show, and their frames."""
        lags = self._store.capabilities.listing_lags and not exact
        oldest = time.monotonic() - (_LISTING_LAG if lags else 0.0)
        lost = set(self._packs.lost(listed, oldest))
        if lost:
            self.drop(lost)

    def add(
        self, pack_name: str, size: int, locations: Iterable[Location], generation: int = 0
    ) -> None:
        """Add a pack whose content is known, so that its index is not read.

        Args:
            pack_name: The pack's name.
            size: Number of bytes of the pack.
            locations: All frames of the pack.
            generation: The pack's generation.
        """
        with self._lock:
            self._table.add(locations)
            self._packs.read[pack_name] = ReadPack(size, generation, time.monotonic())
            self._packs.damaged.pop(pack_name, None)

    def distrust(self, damage: Mapping[Location, CasweightsError]) -> None:
        """Count frames as missing, so that other chains are used and their chunks stored again.

        Packs with damaged frames count as damaged, and findings about the frames are kept for
        other users of the store. A frame whose pack is gone is no damage: a repack deletes packs.

        Args:
            damage: The frames, with the error that reading each raised.
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
        with self._lock:
            self._packs_in_doubt = {suspect.pack for suspect in suspects}
            super().heed(suspects)

    def is_damaged(self, pack: PackId) -> bool:
        """Whether a pack or any frame in it is damaged or in doubt."""
        return names.pack_name(pack) in self._packs.damaged or pack in self._packs_in_doubt

    def reconsider(self) -> None:
        """Forget all indexes if any pack is damaged, because it may have been repaired since."""
        with self._lock:
            if self._packs.damaged:
                self._table.clear()
                self._packs.forget_indexes()

    def hold(self) -> Hold:
        """Return a hold on all packs that are read or written from now on."""
        with self._lock:
            made = Hold()
            self._holds.add(made)
            return made

    def retain(self, tables: Sequence[PackTable]) -> None:
        """Forget the frames that these versions do not need, once there are many of them.

        This bounds the memory of long-running publishers and subscribers. Forgotten frames are
        found again when a snapshot that needs them is learned.
        """
        with self._lock:
            if self._table.size <= self._enough_frames:
                return
            begin = min((hold.since for hold in self._holds), default=math.inf)
            chunks = dict.fromkeys(chunk for table in tables for chunk in table.chunks)
            thinned = self._forget(chunks, self._packs.since(begin))
            self._packs.thin(thinned, self._table.packs(), tables)
            self._exhausted = -1, 0.0
            self._enough_frames = int((1 + _SPARE_SHARE) * self._table.size) + _SPARE_FRAMES

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
            found: dict[str, list[Location]] = {name: [] for name, _ in read}
            for location in self._table.locations():
                if (name := names.pack_name(location.pack)) in found:
                    found[name].append(location)
            return [
                PackContents(ObjectInfo(name, pack.size), pack.generation, found[name])
                for name, pack in read
            ]

    def pack_size(self, pack: PackId) -> int:
        """Return the number of bytes of a pack that was read; 0 for other packs."""
        name = names.pack_name(pack)
        read = self._packs.read.get(name) or self._packs.thinned.get(name)
        return 0 if read is None else read.size

    def unread(self, packs: Iterable[PackId]) -> list[str]:
        """Return the names of the packs among these whose indexes are worth reading."""
        return self._packs.unread(packs)

    def unread_hinted(self) -> list[str]:
        """Return the names of all hinted packs that are unread."""
        return self._packs.unread(self._packs.hinted())

    def unread_packs(self, chunks: Iterable[ChunkId]) -> tuple[list[str], list[str]]:
        """Return the names of the hinted packs that are unread.

        Returns:
            The packs of these chunks, and all other packs. The second list is empty if no snapshot
            named packs for these chunks.
        """
        own = dict.fromkeys(self._packs.packs_of(chunks))
        others = [pack for pack in self._packs.hinted() if own and pack not in own]
        return self._packs.unread(own), self._packs.unread(others)

    def find_chain(self, chunk: ChunkId, finder: ChainFinder | None = None) -> Chain | None:
        """Return the cheapest chain to a chunk; read more packs while none is known.

        Frames in doubt are used only if all packs were read and no other chain exists.

        Args:
            chunk: The chunk.
            finder: A finder made by `finder`, whose chains may begin at chunks that the reader
                has; None for chains that need nothing but the store.

        Returns:
            The chain, or None if the store cannot rebuild the chunk.
        """
        finder = finder or self._finder
        chain = finder.chain(chunk)
        for read_more in (self._read_hinted, self._read_all_hinted, self._read_listed):
            if chain is None:
                read_more(chunk)
                chain = finder.chain(chunk)  # even if nothing was read: another thread may have
        if chain is None and self.has_suspects:
            chain = self._last_resort.chain(chunk)
        return chain

    def _read_hinted(self, chunk: ChunkId) -> None:
        """Read the hinted pack of a chunk, and together with it other hinted packs.

        Every pack that is read makes finders discard their chains, because it may hold cheaper
        ones. To keep the number of searches small, the number of other packs doubles each time.
        """
        with self._lock:
            pack = self._packs.pack_of(chunk)
            self._packs.reread([] if pack is None else [pack])
            if pack is None or not self._packs.unread([pack]):
                return
            others = (other for other in self._packs.hinted() if self._packs.unread([other]))
            packs = dict.fromkeys([pack, *islice(others, self._others)])
            self._others = 2 * self._others + 1
            self._read_packs(list(packs))

    def _read_all_hinted(self, _: ChunkId) -> None:
        with self._lock:
            if not self._is_exhausted():
                self._packs.reread(self._packs.hinted())
                self._read_packs(self._packs.hinted())

    def _read_listed(self, _: ChunkId) -> None:
        """List the packs and read the new ones, unless that was done a moment ago."""
        with self._lock:
            if self._is_exhausted():
                return
            begin = time.monotonic()
            self.load()
            took = time.monotonic() - begin
            fresh = max(_FRESH_SECONDS, _FRESH_FACTOR * took)
            self._exhausted = self._changes, begin + took + fresh

    def _is_exhausted(self) -> bool:
        """Whether all packs were read a moment ago and the known frames did not change since.

        Then a chunk that is missing was missing at that time, too, and reading again would not
        find it.
        """
        changes, until = self._exhausted
        return changes == self._changes and time.monotonic() < until

    @property
    def _changes(self) -> int:
        """A number that grows with every change of the known frames."""
        return self._table.version + len(self._table.exclusions)

    def _read_packs(self, packs: list[PackId]) -> None:
        """Read the indexes of the unread ones among these packs; packs that are gone are absent."""
        with self._lock:
            unread = self._packs.unread(packs)
            sizes = self._store.sizes(unread) if unread else {}  # a repack may have deleted some
            self._packs.absent.update(name for name in unread if name not in sizes)
            self._read([ObjectInfo(name, sizes[name]) for name in unread if name in sizes])
