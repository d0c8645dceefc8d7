"""The index of a store: which chunks it contains, and the locations of their frames."""

from __future__ import annotations

import math
import time
import weakref
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from casweights.config import RELIANCE_SECONDS
from casweights.database.aside import list_aside
from casweights.database.pack_indexes import PackIndexes
from casweights.database.packs import is_pack
from casweights.errors import NotFoundError
from casweights.format import names
from casweights.stores.base import ObjectInfo
from casweights.stores.optional import SupportsLocators
from casweights.system.clocks import uptime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from casweights.database.chain import Chain
    from casweights.database.chains import ChainFinder
    from casweights.database.findings import Findings
    from casweights.errors import CasweightsError
    from casweights.format.pack import Location
    from casweights.format.pack_table import PackTable
    from casweights.ids import ChunkId, PackId, Suspect
    from casweights.stores.base import ObjectStore

# Missing chunks are not looked for again within this many seconds of the last listing, or within
# this many times the time that it took, if that is longer: a version may lack any number of them.
_FRESH_SECONDS = 1.0
_FRESH_FACTOR = 8
_SEARCHED_TOGETHER = 8192  # chunks; a search costs as much as some hundred look-ups
_SPARE_FRAMES = 8192  # known but not needed before any are forgotten; about 5 MiB
_PACKS_FOR_A_CALL = 64  # that `look` lists for each of its calls, on average
_SPARE_SHARE = 1 / 4  # of the needed frames, in addition: forgetting looks at all of them


class Hold:
    """Keeps an index from forgetting packs, for as long as the hold is referenced.

    It covers the packs that the index reads or is given after the hold was made. Writers need it
    because no snapshot names the packs of a version that is being made.

    Attributes:
        since: When it was made, by the `uptime`.
    """

    def __init__(self) -> None:
        self.since = uptime()


class ChunkIndex(PackIndexes):
    """The locations of a store's chunks, learned from the indexes of its packs.

    The order of calls for a reader:

    1. `learn` the pack table of a snapshot: a hint, which may be out of date. It reads nothing.
    2. `prepare`, which is optional, reads the hinted packs of several chunks at once.
    3. `find_chain` reads more packs until a chunk can be rebuilt: first its hinted pack, then all
       hinted packs, then, if some of these are gone, those that segments name, then those that a
       listing shows and a segment names, then all others, and last those that collections have set
       aside. A chunk that is missing after that stays missing until
       `learn` or `expect` is called, or the listing is more than a second old.
    4. `distrust` the frames that turn out to be damaged, and call `find_chain` again, which then
       returns another chain or None.
    5. `retain` the chunks of the last versions, before the next one is read.

    Callers that look for certain chunks in the whole store call `search` instead of steps 1 to 3,
    and those that must know every chunk call `load`. Writers take a `hold` before they rely on a
    chunk, and call `add` for each pack that they have written. `heed` and `reconsider` may be
    called at any time.

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
        super().__init__(store, findings)
        self._locators = store.ability(SupportsLocators)
        self._enough_frames = _SPARE_FRAMES
        self._calls = 0  # of `look`, since the last survey
        self._vanished = 0  # times that packs turned out to be gone
        self._searched: set[PackId] = set()  # their chunks were searched since the last survey
        self._holds: weakref.WeakSet[Hold] = weakref.WeakSet()
        self._absent_until = 0.0  # time until which packs that are absent stay so
        self._segments_until = 0.0  # time until which the list of segments is fresh
        self.expect()

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
        self._fresh = 0, 0.0  # value of `_vanished` at the last survey, and until when it is fresh
        self._is_traced = False  # whether the hinted chunks were traced
        if time.monotonic() >= self._absent_until:
            self._packs.absent = set()
        self._aside_until = 0.0  # time until which what was set aside is known
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

    def look(self, limit: int) -> None:
        """Call `survey`, but not at every call: rarely if the last listing showed many packs.

        Args:
            limit: As for `survey`.
        """
        with self._lock:
            self._calls += 1
            if self._calls * _PACKS_FOR_A_CALL >= len(self._listed):
                self.survey(limit)
                self._calls = 0

    def recheck(self, packs: Iterable[PackId]) -> bool:
        """Look up packs, and forget those that are gone.

        Returns:
            Whether some are gone: then the caller calls `find_again` for their chunks.
        """
        wanted = list(map(names.pack_name, packs))
        gone = set(wanted) - self._store.present(wanted) if wanted else set()
        if gone:
            self.drop(gone)
            self._note_absent(gone)
        return bool(gone)

    def find_again(self, chunks: Sequence[ChunkId], limit: int | None = None) -> None:
        """Look for chunks whose packs are gone, first where maintenance has merged them into.

        Args:
            chunks: The chunks.
            limit: As for `survey`.
        """
        with self._lock:
            self.trace(chunks)
            if None in self.having(chunks):
                self.survey(limit, has_segments=True)
                self.look_up(chunks)

    def unproven(self, chunks: Iterable[ChunkId], hold: Hold) -> list[PackId]:
        """Return the packs of these chunks' chains that nothing has shown to exist since a hold.

        The index learned of them earlier or from a snapshot, and they may be gone by now. After
        some hours, nothing counts as shown any more.
        """
        begin = max(hold.since, uptime() - RELIANCE_SECONDS)
        fresh, packs = self._packs.proven(begin), chain.from_iterable(self.packs(chunks, set()))
        return [pack for pack in dict.fromkeys(packs) if pack not in fresh]

    def distrust(self, damage: Mapping[Location, CasweightsError]) -> None:
        """Count frames as missing, so that other chains are used and their chunks stored again.

        Packs with damaged frames count as damaged, and findings about the frames are kept for
        other users of the store. A frame whose pack is gone is no damage: a repack deletes packs.

        Args:
            damage: The frames, with the error that reading each raised.
        """
        with self._lock:
            self._table.exclude(damage)
            self._vanished += any(isinstance(why, NotFoundError) for why in damage.values())
        for location, why in damage.items():
            if not isinstance(why, NotFoundError):
                self._packs.damaged[names.pack_name(location.pack)] = why
        self._note({at.suspect: why for at, why in damage.items()})

    def heed(self, suspects: set[Suspect]) -> None:
        with self._lock:
            self._packs_in_doubt = {suspect.pack for suspect in suspects}
            self._found = suspects
            self._doubt()

    def is_damaged(self, pack: PackId) -> bool:
        """Whether a pack or any frame in it is damaged or in doubt."""
        return names.pack_name(pack) in self._packs.damaged or pack in self._packs_in_doubt

    def reconsider(self) -> None:
        """Forget all indexes if any pack is damaged, because it may have been repaired since."""
        with self._lock:
            if self._packs.damaged:
                self._table.clear()
                self._packs.forget_indexes()
            self._segments.ignored.clear()

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

    def has_pack(self, pack: PackId) -> bool:
        """Return whether the index of a pack, or of the object of a version, was read."""
        name = names.pack_name(pack)
        return name in self._packs.read or name in self._packs.thinned

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

        Frames in doubt are used only if all packs were read and no other chain exists: first those
        that lie aside, and then those that were found damaged.

        Args:
            chunk: The chunk.
            finder: A finder made by `finder`, whose chains may begin at chunks that the reader
                has; None for chains that need nothing but the store.

        Returns:
            The chain, or None if the store cannot rebuild the chunk.
        """
        finder = finder or self._finder
        chain = finder.chain(chunk)
        for read_more in (
            self._read_hinted,
            self._read_all_hinted,
            self._trace_moved,
            self._search_others,
            self._read_others,
            self._read_aside,
        ):
            if chain is None:
                read_more(chunk)
                chain = finder.chain(chunk)  # even if nothing was read: another thread may have
        for finder in self._last_resorts if self.has_suspects else ():
            chain = chain or finder.chain(chunk)
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

    def _trace_moved(self, chunk: ChunkId) -> None:
        """Trace a chunk if hinted packs are gone, the first time together with all hinted chunks.

        Maintenance has merged such packs since the snapshot was written.
        """
        with self._lock:
            if not self._packs.absent or self._is_exhausted():
                return
            others = () if self._is_traced else islice(self._packs.chunks(), _SEARCHED_TOGETHER)
            self._is_traced = True
            if self._has_segments():
                self._follow_segments([chunk, *others], self._in_store)
            else:
                self._segments_until = self._timed(partial(self.trace, [chunk, *others]))

    def _has_segments(self) -> bool:
        """Whether the segments were listed a moment ago."""
        return time.monotonic() < self._segments_until

    def _search_others(self, chunk: ChunkId) -> None:
        """Search a chunk in all packs, together with those that were in the same pack."""
        with self._lock:
            if self._is_exhausted():
                return
            if not (self._is_fresh() and self.look_up(self._together(chunk))):
                survey = partial(self.survey, has_segments=self._has_segments())
                self._fresh = self._vanished, self._timed(survey)
                self._searched.clear()
                self.look_up(self._together(chunk))

    def _together(self, chunk: ChunkId) -> list[ChunkId]:
        """Return the chunks to search with a missing one: others only once after each survey.

        Where those were searched already, the chunk is missing because its frames are damaged.
        """
        pack = self._packs.pack_of(chunk)
        if pack is None or pack in self._searched:
            return [chunk]
        self._searched.add(pack)
        return [chunk, *islice(self._packs.chunks_of(chunk), _SEARCHED_TOGETHER)]

    def _is_fresh(self) -> bool:
        """Whether the last survey was a moment ago, and no pack turned out to be gone since."""
        vanished, until = self._fresh
        return vanished == self._vanished and time.monotonic() < until

    def _read_others(self, _: ChunkId) -> None:
        """Read all packs of the last listing that were not read yet."""
        with self._lock:
            if not self._is_exhausted():
                until = self._timed(self._load_rest)
                self._exhausted = self._changes, max(until, self._fresh[1])

    def _read_aside(self, _: ChunkId) -> None:
        """Read the packs that collections have set aside.

        Their frames are in doubt: readers use them where nothing else is left, and writers store
        their chunks again.
        """
        with self._lock:
            if self._lacks_aside or time.monotonic() >= self._aside_until:
                self._aside_until = self._timed(self._load_aside)
                self._lacks_aside = False

    def _load_aside(self) -> None:
        known = self._packs.read.keys() | self._packs.damaged.keys()
        aside = list_aside(self._store)
        new = {name for name in aside if is_pack(name) and name not in known}
        if gone := sorted(new - self._store.present(new) if new else ()):
            self._aside |= {names.pack_of(name) for name in gone}
            self._doubt()
            self._read([aside[name] for name in gone], is_proof=False)

    @staticmethod
    def _timed(call: Callable[[], object]) -> float:
        """Make a call; return the time until which its results count as fresh."""
        begin = time.monotonic()
        call()
        took = time.monotonic() - begin
        return begin + took + max(_FRESH_SECONDS, _FRESH_FACTOR * took)

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
            sizes = self.sizes(self._packs.unread(packs))  # a repack may have deleted some
            # A store with locators reads from there what has no name any more.
            there = [ObjectInfo(name, size) for name, size in sizes.items()]
            if not self._read(there, is_proof=self._locators is None):
                self._note_absent(self._packs.unread(packs))  # known locators need no look-up

    def sizes(self, packs: Sequence[str]) -> dict[str, int]:
        """Look up packs, given their names; for a moment, those that are gone count as absent.

        Returns:
            The sizes of those that exist.
        """
        found = self._store.sizes(packs) if packs else {}
        if gone := [name for name in packs if name not in found]:
            self._note_absent(gone)
        return found

    def _note_absent(self, packs: Iterable[str]) -> None:
        with self._lock:
            self._packs.absent.update(packs)
            self._absent_until = time.monotonic() + _FRESH_SECONDS
