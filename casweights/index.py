"""Which chunks the store has, where their frames lie, and the cheapest way to read each."""

from __future__ import annotations

import heapq
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import KiB, MiB
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE, Kind, corrupt, prefix
from casweights.format.fields import parse_id
from casweights.format.pack import TRAILER_SIZE, Location, index_span, pack_id, parse_index
from casweights.ids import PackId
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from casweights.format.snapshot import PackTable
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectStore, Range

MAX_LINKS = 4096  # frames in a row that a reader follows
_TAIL_GUESS = 8 * KiB
_READERS = 16
_SMALL_PACK, _SMALL_PACKS = 8 * MiB, 8  # a step of a run; several are more than one needs
_TINY_PACK, _TINY_PACKS = 128 * KiB, 256
_BESIDE = 512 * KiB
_LISTING_LAG = 300.0  # seconds


class _Known(NamedTuple):
    """A pack that was read.

    Attributes:
        size: Its bytes.
        since: When, by the monotonic clock, in seconds.
    """

    size: int
    since: float


class ChunkIndex:
    """Locations of chunks, learnt from the packs' own indexes.

    *Hints* come with snapshots and say which packs to look into first; they may be out of date.
    `load` reads the indexes of all packs that were not read yet.

    Attributes:
        damaged: Packs whose index could not be read, or in which a bad frame was met, with the
            reason. What is bad counts as missing.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._hints: dict[ChunkId, PackId] = {}
        self._hinted_packs: dict[PackId, None] = {}
        self._table = FrameTable()
        self._packs: dict[str, _Known] = {}  # those that were read
        self._paths = PathFinder(self._table)
        self.damaged: dict[str, CasweightsError] = {}

    def hint(self, table: PackTable) -> None:
        """Remember in which packs a snapshot's chunks and their bases lie."""
        self._hints.update(table.chunks)
        self._hinted_packs.update(dict.fromkeys(table.packs))
        for pack, place in table.places.items():
            self._store.hint(names.pack_name(pack), place)

    def prepare(self, chunks: Iterable[ChunkId]) -> None:
        """Read the hinted packs of these chunks, all at once."""
        self._read_packs(list(dict.fromkeys(h for c in chunks if (h := self._hints.get(c)))))

    def prepare_all(self) -> None:
        """Read all hinted packs."""
        self._read_packs(list(self._hinted_packs))

    def small_packs(self, chunks: Iterable[ChunkId]) -> list[list[Range]]:
        """Unread hinted packs that one fetches whole rather than piece by piece.

        Those are the packs of these chunks, if they are as small as that of a step, and whatever
        is so tiny that an index is not worth a read of its own.
        """
        own = dict.fromkeys(h for chunk in chunks if (h := self._hints.get(chunk)))
        hinted = map(names.pack_name, own | self._hinted_packs if own else own)
        unread = [name for name in hinted if name not in self._packs and name not in self.damaged]
        sizes = self._store.sizes(unread) if unread else {}
        tiny = [name for name, size in sizes.items() if size <= _TINY_PACK]
        small = [
            name for name in map(names.pack_name, own) if 0 < sizes.get(name, 0) <= _SMALL_PACK
        ]
        # Twice: they are read for their index, and are to stay for their frames.
        chosen = dict.fromkeys([*small[:_SMALL_PACKS], *tiny[:_TINY_PACKS]])
        return [[(name, 0, sizes[name])] * 2 for name in chosen]

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
            listed = list(self._store.list(names.PACKS))
            if self._has_lost({info.name for info in listed}, exact=exact):
                self._forget()  # some are gone, and their chunks with them
            unread = [info for info in listed if info.name not in self._packs]
            if most is None or len(unread) <= most:
                self._read(unread)

    def _read(self, packs: list[ObjectInfo]) -> None:
        if not packs:
            return
        with ThreadPoolExecutor(_READERS) as pool:  # of its own: callers are on the workers
            for info, result in zip(packs, pool.map(self._try_read, packs), strict=True):
                if isinstance(result, CasweightsError):
                    self.damaged[info.name] = result
                else:
                    self.add(info.name, info.size, result)

    def _try_read(self, info: ObjectInfo) -> list[Location] | CasweightsError:
        store, trusting = self._store, self._store.capabilities.remote
        try:
            return read_pack_index(store, info, trusting=trusting)
        except (IntegrityError, NotFoundError) as error:
            if not store.forget(info.name):
                return error
        try:  # once more: what the store remembered of it may have been to blame
            size = store.sizes([info.name]).get(info.name, info.size)
            return read_pack_index(store, ObjectInfo(info.name, size), trusting=trusting)
        except (IntegrityError, NotFoundError) as error:
            return error

    def _has_lost(self, listed: set[str], *, exact: bool) -> bool:
        """Whether a known pack is gone. A store behind a network may not list the newest yet."""
        lags = self._store.capabilities.remote and not exact
        patience = _LISTING_LAG if lags else 0.0
        oldest = time.monotonic() - patience
        return any(
            name not in listed and known.since <= oldest for name, known in self._packs.items()
        )

    def _forget(self) -> None:
        for known in (self._table, self._packs, self.damaged):
            known.clear()

    def distrust(self, location: Location, why: CasweightsError) -> None:
        """Count a frame as missing and its pack as damaged; its chunk may be written anew."""
        self._table.exclude(location)
        self.damaged[names.pack_name(location.pack)] = why

    def add(self, pack_name: str, size: int, locations: Iterable[Location]) -> None:
        """Take note of all frames of a pack, of `size` bytes, which need not be read any more."""
        with self._lock:
            self._table.add(locations)
            self._packs[pack_name] = _Known(size, time.monotonic())
            self.damaged.pop(pack_name, None)

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All good frames of a chunk that are known."""
        return self._table.frames(chunk)

    def __contains__(self, chunk: ChunkId) -> bool:
        """Whether the packs that were read are enough to rebuild this chunk, as far as known."""
        return self._paths.path(chunk) is not None

    def __iter__(self) -> Iterator[ChunkId]:
        """Every chunk that is known."""
        return iter(self._table)

    def finder(self, have: Container[ChunkId]) -> PathFinder:
        """Finds paths that may begin at chunks that the reader has."""
        return PathFinder(self._table, have)

    def path(self, chunk: ChunkId) -> Path | None:
        """The cheapest way to rebuild a chunk from the packs that were read."""
        return self._paths.path(chunk)

    def find_path(self, chunk: ChunkId, finder: PathFinder | None = None) -> Path | None:
        """The same; further packs are read where that is needed, the hinted ones first."""
        finder = finder or self._paths
        path = finder.path(chunk)
        hint = self._hints.get(chunk)
        for packs in ([] if hint is None else [hint], list(self._hinted_packs)):
            if path is None:
                self._read_packs(packs)
                path = finder.path(chunk)
        if path is None:
            self.load()
            path = finder.path(chunk)
        return path

    def _read_packs(self, packs: list[PackId]) -> None:
        """Read the indexes of these packs, but for those that were read or are gone."""
        with self._lock:
            unread = [
                name
                for name in map(names.pack_name, packs)
                if name not in self._packs and name not in self.damaged
            ]
            sizes = self._store.sizes(unread) if unread else {}  # without those rewritten since
            self._read([ObjectInfo(name, sizes[name]) for name in unread if name in sizes])


class FrameTable:
    """Frames by their chunk.

    Attributes:
        version: Grows with every change that may open or close ways to chunks that were known.
    """

    def __init__(self) -> None:
        self._known: dict[ChunkId, tuple[Location, ...]] = {}
        self._excluded: set[Location] = set()
        self._unknown_bases: set[ChunkId] = set()
        self.version = 0

    def __iter__(self) -> Iterator[ChunkId]:
        """Every chunk that is known."""
        return iter(list(self._known))

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All frames of a chunk that are not excluded."""
        found = self._known.get(chunk, ())
        if not self._excluded:
            return found
        return [place for place in found if place not in self._excluded]

    def add(self, locations: Iterable[Location]) -> None:
        """Take note of frames."""
        new: set[ChunkId] = set()  # may have several frames, and nobody has asked for it yet
        for location in locations:
            chunk, base = location.frame.chunk, location.frame.base
            known = self._known.get(chunk, ())
            if location in known:
                continue
            if (known and chunk not in new) or chunk in self._unknown_bases:
                self.version += 1
                self._unknown_bases.discard(chunk)
            if not known:
                new.add(chunk)
            if base is not None and base not in self._known:
                self._unknown_bases.add(base)
            self._known[chunk] = (*known, location)

    def exclude(self, location: Location) -> None:
        """Count a frame as missing."""
        self._excluded.add(location)
        self.version += 1

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()
        self._excluded.clear()
        self._unknown_bases.clear()
        self.version += 1


class Path(NamedTuple):
    """How to rebuild a chunk: frames, each the base of the next one.

    Attributes:
        frames: In the order of decoding. The first has no base, or one that the reader has.
        nbytes: Their stored bytes.
    """

    frames: tuple[Location, ...]
    nbytes: int


class _Step(NamedTuple):
    """The last step of the best way to a chunk."""

    nbytes: int  # of the whole way
    links: int
    frame: Location | None  # None for what the reader has


class PathFinder:
    """Finds cheapest paths through frames, and remembers them while no other ways open.

    Args:
        table: The frames.
        have: Chunks that cost nothing, because the reader has them.
    """

    def __init__(self, table: FrameTable, have: Container[ChunkId] = ()) -> None:
        self._table = table
        self._have = have
        self._lock = threading.Lock()
        self._steps: dict[ChunkId, _Step] = {}
        self._version = -1

    def path(self, chunk: ChunkId) -> Path | None:
        """The path of the fewest stored bytes; None where frames are missing."""
        with self._lock:
            if self._version != self._table.version:
                self._steps, self._version = {}, self._table.version
            if chunk not in self._steps:
                self._search(chunk)
            return self._trace(chunk)

    def _search(self, wanted: ChunkId) -> None:
        """Dijkstra's algorithm, from the chunk back to the nearest place where a way can begin.

        What lies further back than that is never looked at, however long the history.
        """
        numbers = count()  # against ties
        queue = [_Candidate(0, 0, next(numbers), wanted, None)]
        done: set[ChunkId] = set()
        while queue:
            nearest = heapq.heappop(queue)
            chunk, trail = nearest.chunk, nearest.trail
            if nearest.links > MAX_LINKS:
                continue
            if chunk is None or chunk in self._steps:
                self._keep(trail, _NOTHING if chunk is None else self._steps[chunk])
                return
            if chunk in done:
                continue
            done.add(chunk)
            if chunk in self._have:
                self._steps[chunk] = _NOTHING
                self._keep(trail, _NOTHING)
                return
            for place in self._table.frames(chunk):
                frame = place.frame
                if trail is not None and frame.raw_size != trail.place.frame.raw_size:
                    continue  # nothing can be made of it, but it may be sound by itself
                known = _NOTHING if frame.base is None else self._steps.get(frame.base, _NOTHING)
                nbytes = nearest.nbytes + frame.size + known.nbytes
                links = nearest.links + 1 + known.links
                further = _Trail(place, trail)
                heapq.heappush(queue, _Candidate(nbytes, links, next(numbers), frame.base, further))

    def _keep(self, trail: _Trail | None, before: _Step) -> None:
        """Remember the best way to all chunks of a trail."""
        while trail is not None:
            frame = trail.place.frame
            before = _Step(before.nbytes + frame.size, before.links + 1, trail.place)
            self._steps[frame.chunk] = before
            trail = trail.next

    def _trace(self, chunk: ChunkId) -> Path | None:
        """Follow the steps back from a chunk to where they begin."""
        last = step = self._steps.get(chunk)
        if last is None:
            return None
        frames: list[Location] = []
        while step is not None and step.frame is not None:
            frames.append(step.frame)
            base = step.frame.frame.base
            step = None if base is None else self._steps[base]
        return Path(tuple(reversed(frames)), last.nbytes)


class _Trail(NamedTuple):
    """Frames from a chunk on to the wanted one."""

    place: Location
    next: _Trail | None


class _Candidate(NamedTuple):
    """A way back from the wanted chunk, ordered by what it takes."""

    nbytes: int  # with what is known to lie before `chunk`
    links: int
    number: int
    chunk: ChunkId | None  # where it has come to; None for a frame without a base
    trail: _Trail | None


_NOTHING = _Step(0, 0, None)


def read_pack_index(
    store: ObjectStore, info: ObjectInfo, *, trusting: bool = False
) -> list[Location]:
    """The frames of a pack, from its own index.

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
    if info.size < PREFIX_SIZE + TRAILER_SIZE:
        raise corrupt(info.name, "it is too short for a pack")
    tail_start = max(0, info.size - _TAIL_GUESS)
    tail = store.get(info.name, tail_start, info.size - tail_start)
    start, stop = index_span(tail[-TRAILER_SIZE:], info.size, info.name)
    if start >= tail_start:
        index = tail[start - tail_start : stop - tail_start]
    else:
        index = store.get(info.name, start, stop - start)
    first_bytes = prefix(Kind.PACK)
    if not trusting or pack_id(first_bytes, index) != pack:
        first_bytes = store.get(info.name, 0, PREFIX_SIZE) if tail_start else tail[:PREFIX_SIZE]
    frames = parse_index(first_bytes, index, start, pack, info.name)
    return [Location(pack, frame) for frame in frames]
