"""Which chunks the store has, where their frames lie, and the cheapest way to read each."""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import KiB, MiB
from casweights.database.chains import ChainFinder
from casweights.database.frame_table import FrameTable
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, corrupt, prefix
from casweights.format.fields import parse_id
from casweights.format.pack import (
    TRAILER_SIZE,
    Location,
    index_span,
    pack_id,
    parse_generation,
    parse_index,
)
from casweights.ids import PackId
from casweights.stores.base import ObjectInfo
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

    from casweights.database.chains import Chain, Cost, Node
    from casweights.database.findings import Findings
    from casweights.format.snapshot import PackTable
    from casweights.ids import ChunkId, Suspect
    from casweights.stores.base import ObjectStore, Range

_TAIL_GUESS = 8 * KiB
_READERS = 16
_SMALL_PACK, _SMALL_PACKS = 8 * MiB, 8  # a step of a run; several are more than one needs
_TINY_PACK, _TINY_PACKS = 128 * KiB, 256
_BESIDE = 512 * KiB
_LISTING_LAG = 300.0  # seconds
_LISTINGS = 3  # a repack may delete packs between their listing and the read of their indexes
_FRESH, _SHARE = 1.0, 8  # seconds that a listing is good for, and in terms of what it took
_SPARE_PACKS = 256  # that may be known for nothing before they are forgotten


class _Known(NamedTuple):
    """A pack that was read.

    Attributes:
        size: Its bytes.
        generation: Its generation, see `build_index`.
        since: When, by the monotonic clock, in seconds.
    """

    size: int
    generation: int
    since: float


class PackContents(NamedTuple):
    """What a pack holds, as its index says.

    Attributes:
        info: The pack's name and size.
        generation: Its generation, see `build_index`.
        locations: Its frames.
    """

    info: ObjectInfo
    generation: int
    locations: list[Location]


class ChunkIndex:
    """Locations of chunks, learnt from the packs' own indexes.

    *Hints* come with snapshots and say which packs to look into first; they may be out of date.
    `load` reads the indexes of all packs that were not read yet.

    Args:
        store: Where the packs are.
        findings: Told of frames that turn out to be damaged.

    Attributes:
        damaged: Packs whose index could not be read, or in which a bad frame was met, with the
            reason. What is bad counts as missing.
    """

    def __init__(self, store: ObjectStore, findings: Findings | None = None) -> None:
        self._store = store
        self._findings = findings
        self._packs_in_doubt: set[PackId] = set()
        self._lock = threading.RLock()
        self._hints: dict[ChunkId, PackId] = {}
        self._hinted_packs: dict[PackId, None] = {}
        self._table = FrameTable()
        self._packs: dict[str, _Known] = {}  # those that were read
        self._chains = ChainFinder(self._table)
        self._last_resort = ChainFinder(self._table, doubted=True)
        self._enough_packs = _SPARE_PACKS
        self.expect()
        self.damaged: dict[str, CasweightsError] = {}

    def learn(self, table: PackTable) -> None:
        """Remember in which packs a snapshot's chunks and their bases lie."""
        self.expect()
        self._hints.update(table.chunks)
        self._hinted_packs.update(dict.fromkeys(table.packs))
        for pack, place in table.places.items():
            self._store.hint(names.pack_name(pack), place)

    def expect(self) -> None:
        """From now on, chunks may be there that were missing when packs were last listed."""
        self._exhausted = -1, 0.0
        self._absent: set[str] = set()  # packs that are not there
        self._others = 0  # hinted packs to read with the next one

    def prepare(self, chunks: Iterable[ChunkId]) -> None:
        """Read the hinted packs of these chunks, all at once."""
        self._read_packs(self._packs_of(chunks))

    def prepare_all(self) -> None:
        """Read all hinted packs."""
        self._read_packs(list(self._hinted_packs))

    def small_packs(self, chunks: Iterable[ChunkId]) -> list[list[Range]]:
        """Unread hinted packs that one fetches whole rather than piece by piece.

        Those are the packs of these chunks, if they are as small as that of a step, and whatever
        is so tiny that an index is not worth a read of its own.
        """
        own = self._packs_of(chunks)
        unread = self._unread(dict.fromkeys([*own, *self._hinted_packs]) if own else ())
        sizes = self._store.sizes(unread) if unread else {}
        tiny = [name for name, size in sizes.items() if size <= _TINY_PACK]
        small = [
            name for name in map(names.pack_name, own) if 0 < sizes.get(name, 0) <= _SMALL_PACK
        ]
        # Twice: they are read for their index, and are to stay for their frames.
        chosen = dict.fromkeys([*small[:_SMALL_PACKS], *tiny[:_TINY_PACKS]])
        return [[(name, 0, sizes[name])] * 2 for name in chosen]

    def _packs_of(self, chunks: Iterable[ChunkId]) -> list[PackId]:
        """The hinted packs of these chunks, each once."""
        return list(dict.fromkeys(h for chunk in chunks if (h := self._hints.get(chunk))))

    def _unread(self, packs: Iterable[PackId]) -> list[str]:
        """Names of those of these packs that are worth a read."""
        known = (self._packs, self.damaged, self._absent)
        return [name for name in map(names.pack_name, packs) if not any(name in k for k in known)]

    def around(self, location: Location) -> Range:
        """A frame's range, and what lies beside it in a small pack: the frames of next chunks."""
        name, start, stop = location.range
        size = self._packs[name].size if name in self._packs else 0
        if not stop <= size <= _SMALL_PACK:
            return name, start, stop
        return name, start // _BESIDE * _BESIDE, min(-(-stop // _BESIDE) * _BESIDE, size)

    def load(self, most: int | None = None, *, exact: bool = False) -> None:
        """Read the indexes of all packs that appeared since the last time.

        Args:
            most: If there are more, read none of them.
            exact: Whether what is not listed is gone for sure, and not only too new.
        """
        with self._lock:
            for _ in range(_LISTINGS):
                listed = {info.name: info for info in list_packs(self._store)}
                unread = [info for name, info in listed.items() if name not in self._packs]
                if (most is not None and len(unread) > most) or self._read(unread):
                    break
            # Last, so that a chunk that has moved to another pack is known all the time.
            self._drop(self._lost(listed, exact=exact))

    def _read(self, packs: list[ObjectInfo]) -> bool:
        """Read the indexes of these packs; False if some were deleted since they were listed."""
        complete = True
        if not packs:
            return complete
        with Workers(_READERS) as workers:  # of its own: callers are on the store's workers
            for info, result in zip(packs, workers.map(self._try_read, packs), strict=True):
                if isinstance(result, NotFoundError):
                    complete = False
                elif isinstance(result, CasweightsError):
                    self.damaged[info.name] = result
                else:
                    self.add(info.name, info.size, result.locations, result.generation)
        return complete

    def _try_read(self, info: ObjectInfo) -> PackContents | CasweightsError:
        store, trusting = self._store, self._store.capabilities.remote
        try:
            return read_pack(store, info, trusting=trusting)
        except (IntegrityError, NotFoundError) as error:
            if not store.forget(info.name):
                return error
        try:  # once more: what the store remembered of it may have been to blame
            size = store.sizes([info.name]).get(info.name, info.size)
            return read_pack(store, ObjectInfo(info.name, size), trusting=trusting)
        except (IntegrityError, NotFoundError) as error:
            return error

    def _lost(self, listed: Container[str], *, exact: bool) -> set[str]:
        """Known packs that are gone. A store behind a network may not list the newest yet."""
        lags = self._store.capabilities.remote and not exact
        oldest = time.monotonic() - (_LISTING_LAG if lags else 0.0)
        gone = {
            name
            for name, known in self._packs.items()
            if name not in listed and known.since <= oldest
        }
        return gone | {
            name for name in self.damaged if name not in listed and name not in self._packs
        }

    def _drop(self, packs: set[str]) -> None:
        """Forget packs that are gone, and what was in them."""
        if not packs:
            return
        for name in packs:
            self._packs.pop(name, None)
            self.damaged.pop(name, None)
        self._table.retain(parse_id(PackId, names.PACKS, name) for name in self._packs)

    def _forget(self) -> None:
        for known in (self._table, self._packs, self.damaged):
            known.clear()

    def distrust(self, damage: Mapping[Location, CasweightsError]) -> None:
        """Count frames as missing; their chunks may be written again.

        Their packs count as damaged, and others will know, unless they are gone: others may have
        rewritten them.

        Args:
            damage: The frames, with what is wrong with each.
        """
        with self._lock:
            self._table.exclude(damage)
        for location, why in damage.items():
            if not isinstance(why, NotFoundError):
                self.damaged[names.pack_name(location.pack)] = why
        bad = {
            at.suspect: str(why) for at, why in damage.items() if isinstance(why, IntegrityError)
        }
        if bad and self._findings is not None:
            self._findings.note(bad)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names of the packs whose index cannot be read, so that nothing in them is known."""
        return tuple(sorted(self.damaged.keys() - self._packs.keys()))

    @property
    def has_suspects(self) -> bool:
        """Whether anything is in doubt."""
        return bool(self._packs_in_doubt)

    def heed(self, suspects: set[Suspect]) -> None:
        """Count these frames, and those of these packs, as missing where there is a choice.

        A chunk that only they hold is written anew by whoever brings it, and whoever wants it
        tries them all the same: they may be sound.
        """
        with self._lock:
            self._packs_in_doubt = {suspect.pack for suspect in suspects}
            self._table.doubt(suspects)

    def doubts(self, location: Location) -> bool:
        """Whether a frame is in doubt."""
        return self.has_suspects and self._table.doubts(location)

    def is_damaged(self, pack: PackId) -> bool:
        """Whether anything in a pack is damaged or in doubt."""
        return names.pack_name(pack) in self.damaged or pack in self._packs_in_doubt

    def abandon(self, chunk: ChunkId) -> None:
        """Count all frames of a chunk as missing, since many of them are bad."""
        with self._lock:
            self._table.exclude(self._table.all_frames(chunk))

    def reconsider(self) -> None:
        """Look at everything anew: by the next time, what was found damaged may be repaired."""
        with self._lock:
            if self.damaged:
                self._forget()

    def add(
        self, pack_name: str, size: int, locations: Iterable[Location], generation: int = 0
    ) -> None:
        """Take note of all frames of a pack, of `size` bytes, which need not be read any more."""
        with self._lock:
            self._table.add(locations)
            self._packs[pack_name] = _Known(size, generation, time.monotonic())
            self.damaged.pop(pack_name, None)

    def retain(self, chunks: Iterable[ChunkId]) -> bool:
        """Forget what is not needed to read these chunks, once there is much of it.

        Who goes from version to version for a long time would remember all of them otherwise. What
        is forgotten is found again by the hints of the snapshots that need it.

        Returns:
            Whether anything was forgotten.
        """
        with self._lock:
            if len(self._packs) < self._enough_packs:
                return False
            chains = [chain for chunk in chunks if (chain := self._chains.chain(chunk))]
            seen: set[Node] = set()
            kept = {frame.pack for chain in chains for frame in chain.back(seen)}
            self._table.retain(kept)
            known = {names.pack_name(pack) for pack in kept}
            self._packs = {name: self._packs[name] for name in known if name in self._packs}
            self._hinted_packs = {pack: None for pack in self._hinted_packs if pack in kept}
            self._hints = {chunk: pack for chunk, pack in self._hints.items() if pack in kept}
            self._enough_packs = 2 * len(self._packs) + _SPARE_PACKS
            return True

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All frames of a chunk that are known and were not found damaged here."""
        return self._table.all_frames(chunk)

    def contents(self) -> list[PackContents]:
        """The packs that were read, with all their frames, the bad ones among them included."""
        with self._lock:
            found: dict[str, list[Location]] = {name: [] for name in sorted(self._packs)}
            for location in self._table.locations():
                found[names.pack_name(location.pack)].append(location)
            return [
                PackContents(ObjectInfo(name, known.size), known.generation, found[name])
                for name, known in sorted(self._packs.items())
            ]

    def __contains__(self, chunk: ChunkId) -> bool:
        """Whether the packs that were read are enough to rebuild this chunk, as far as known."""
        return self._chains.cost(chunk) is not None

    def having(self, chunks: Sequence[ChunkId | None]) -> list[ChunkId | None]:
        """These chunks, with None in place of those that the packs that were read lack."""
        return self._chains.reachable(chunks)

    def packs(self, chunks: Iterable[ChunkId], seen: set[Node]) -> list[tuple[PackId, ...]]:
        """The packs of each chunk's chain, that of its own frame first; empty without a chain.

        See `Chain.back` for `seen`.
        """
        return self._chains.packs(chunks, seen)

    def __iter__(self) -> Iterator[ChunkId]:
        """Every chunk that is known."""
        return iter(self._table)

    def finder(self, have: Container[ChunkId]) -> ChainFinder:
        """Finds chains that may begin at chunks that the reader has."""
        return ChainFinder(self._table, have)

    def chain(self, chunk: ChunkId) -> Chain | None:
        """The cheapest way to rebuild a chunk from the packs that were read."""
        return self._chains.chain(chunk)

    def cost(self, chunk: ChunkId) -> Cost | None:
        """What the cheapest way to rebuild a chunk takes, from the packs that were read."""
        return self._chains.cost(chunk)

    def find_chain(self, chunk: ChunkId, finder: ChainFinder | None = None) -> Chain | None:
        """The same; further packs are read where that is needed, the hinted ones first."""
        finder = finder or self._chains
        chain = finder.chain(chunk)
        for read_more in (self._read_hinted, self._read_all_hinted, self._read_listed):
            if chain is None:
                read_more(chunk)
                chain = finder.chain(chunk)  # another thread may have read what it takes
        if chain is None and self.has_suspects:
            chain = self._last_resort.chain(chunk)
        return chain

    def _read_hinted(self, chunk: ChunkId) -> None:
        """Read the hinted pack of a chunk, and each time twice as many others with it.

        Every pack may open other ways to the chunks of the packs before it, and what was found
        about those must be found again. So packs are not read one at a time.
        """
        with self._lock:
            hint = self._hints.get(chunk)
            if hint is None or not self._unread([hint]):
                return
            others = (pack for pack in list(self._hinted_packs) if self._unread([pack]))
            packs = dict.fromkeys([hint, *islice(others, self._others)])
            self._others = 2 * self._others + 1
            self._read_packs(list(packs))

    def _read_all_hinted(self, _: ChunkId) -> None:
        if not self._is_exhausted():
            self._read_packs(list(self._hinted_packs))

    def _read_listed(self, _: ChunkId) -> None:
        """Read all packs that appeared, unless that was done a moment ago."""
        with self._lock:
            if self._is_exhausted():
                return
            begin = time.monotonic()
            self.load()
            took = time.monotonic() - begin
            self._exhausted = self._changes, begin + took + max(_FRESH, _SHARE * took)

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
        """Read the indexes of these packs, but for those that were read or are gone."""
        with self._lock:
            unread = self._unread(packs)
            sizes = self._store.sizes(unread) if unread else {}  # without those rewritten since
            self._absent.update(name for name in unread if name not in sizes)
            self._read([ObjectInfo(name, sizes[name]) for name in unread if name in sizes])


def list_packs(store: ObjectStore) -> Iterator[ObjectInfo]:
    """The packs of a store; objects beside them that have other names are left out."""
    return (info for info in store.list(names.PACKS) if _is_pack(info.name))


def _is_pack(name: str) -> bool:
    try:
        parse_id(PackId, names.PACKS, name)
    except IntegrityError:
        return False
    return True


def read_pack_index(store: ObjectStore, info: ObjectInfo) -> list[Location]:
    """The frames of a pack, from its own index; errors as for `read_pack`."""
    return read_pack(store, info).locations


def read_pack(store: ObjectStore, info: ObjectInfo, *, trusting: bool = False) -> PackContents:
    """What a pack holds, from its own index.

    Args:
        store: Where it is.
        info: Which it is.
        trusting: Whether to take it for granted that the pack begins as packs do, which frames do
            not depend on, and save a read.

    Raises:
        NotFoundError: The pack is gone.
        IntegrityError: The pack is damaged or is not the one its name says.
        UnsupportedError: A newer casweights wrote it.
    """
    pack = parse_id(PackId, names.PACKS, info.name)
    start, index, begin = _read_index(store, info)
    first_bytes = prefix(ObjectKind.PACK)
    if not trusting or pack_id(first_bytes, index) != pack:
        first_bytes = begin or store.get(info.name, 0, PREFIX_SIZE)
    frames = parse_index(first_bytes, index, start, pack, info.name)
    generation = parse_generation(index, info.name)
    return PackContents(info, generation, [Location(pack, frame) for frame in frames])


def _read_index(store: ObjectStore, info: ObjectInfo) -> tuple[int, bytes, bytes]:
    """Where a pack's index begins, the index, and the pack's first bytes if they came with it."""
    if info.size < PREFIX_SIZE + TRAILER_SIZE:
        raise corrupt(info.name, "it is too short for a pack")
    tail_start = max(0, info.size - _TAIL_GUESS)
    tail = store.get(info.name, tail_start, info.size - tail_start)
    start, stop = index_span(tail[-TRAILER_SIZE:], info.size, info.name)
    if start >= tail_start:
        index = tail[start - tail_start : stop - tail_start]
    else:
        index = store.get(info.name, start, stop - start)
    return start, index, b"" if tail_start else tail[:PREFIX_SIZE]
