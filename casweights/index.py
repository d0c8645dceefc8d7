"""Which chunks the store has, where their frames lie, and the cheapest way to read each."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
    from collections.abc import Container, Iterable, Iterator

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

    def load(self, most: int | None = None) -> None:
        """Read the indexes of all packs that appeared since the last time.

        Args:
            most: If there are more, read none of them.
        """
        with self._lock:
            listed = list(self._store.list(names.PACKS))
            if self._has_lost({info.name for info in listed}):
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

    def _has_lost(self, listed: set[str]) -> bool:
        """Whether a known pack is gone. A store behind a network may not list the newest yet."""
        patience = _LISTING_LAG if self._store.capabilities.remote else 0.0
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

    def frames(self, chunk: ChunkId) -> list[Location]:
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
        version: Grows with every change.
    """

    def __init__(self) -> None:
        self._known: dict[ChunkId, tuple[Location, ...]] = {}
        self._excluded: set[Location] = set()
        self.version = 0

    def __iter__(self) -> Iterator[ChunkId]:
        """Every chunk that is known."""
        return iter(list(self._known))

    def frames(self, chunk: ChunkId) -> list[Location]:
        """All frames of a chunk that are not excluded."""
        return [place for place in self._known.get(chunk, ()) if place not in self._excluded]

    def add(self, locations: Iterable[Location]) -> None:
        """Take note of frames."""
        for location in locations:
            known = self._known.get(location.frame.chunk, ())
            if location not in known:
                self._known[location.frame.chunk] = (*known, location)
        self.version += 1

    def exclude(self, location: Location) -> None:
        """Count a frame as missing."""
        self._excluded.add(location)
        self.version += 1

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()
        self._excluded.clear()
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
    nbytes: int
    links: int
    frame: Location | None  # None for what the reader has


class PathFinder:
    """Finds cheapest paths through frames and remembers them while nothing is learnt.

    Args:
        table: The frames.
        have: Chunks that cost nothing, because the reader has them.
    """

    def __init__(self, table: FrameTable, have: Container[ChunkId] = ()) -> None:
        self._table = table
        self._have = have
        self._lock = threading.Lock()
        self._steps: dict[ChunkId, _Step | None] = {}
        self._version = -1

    def path(self, chunk: ChunkId) -> Path | None:
        """The path of the fewest stored bytes; None where frames are missing."""
        with self._lock:
            if self._version != self._table.version:
                self._steps, self._version = {}, self._table.version
            if chunk in self._steps:
                return _trace(chunk, self._steps)
            on_circles = self._resolve(chunk)
            path = _trace(chunk, self._steps)
            for unsure in on_circles:
                self._steps.pop(unsure, None)
            return path

    def _resolve(self, wanted: ChunkId) -> set[ChunkId]:
        """Find the last step to a chunk and to all chunks before it.

        Depth first, without recursion: chains are longer than Python's stack. Returns the chunks
        whose step was found while one of their bases waited for them: true, but maybe not the
        best, and None may be wrong.
        """
        steps, pending = self._steps, [wanted]
        entered: set[ChunkId] = set()
        unsure: set[ChunkId] = set()
        while pending:
            chunk = pending[-1]
            if chunk in steps:
                pending.pop()
            elif chunk in self._have:
                steps[chunk] = _Step(0, 0, None)
            else:
                frames = self._table.frames(chunk)
                bases = {place.frame.base for place in frames if place.frame.base is not None}
                if chunk not in entered:
                    entered.add(chunk)
                    pending += bases - entered
                    continue
                if any(base not in steps or base in unsure for base in bases):
                    unsure.add(chunk)
                steps[chunk] = _cheapest(frames, steps)
        return unsure


def _trace(chunk: ChunkId, steps: dict[ChunkId, _Step | None]) -> Path | None:
    """Follow the steps back from a chunk to where they begin."""
    last = step = steps[chunk]
    if last is None:
        return None
    frames: list[Location] = []
    while step is not None and step.frame is not None:
        frames.append(step.frame)
        base = step.frame.frame.base
        step = None if base is None else steps[base]
    return Path(tuple(reversed(frames)), last.nbytes)


def _cheapest(frames: list[Location], steps: dict[ChunkId, _Step | None]) -> _Step | None:
    """The best last step to a chunk."""
    best: _Step | None = None
    for place in frames:
        base = place.frame.base
        before = _Step(0, 0, None) if base is None else steps.get(base)
        if before is None or before.links >= MAX_LINKS:
            continue
        if before.frame is not None and before.frame.frame.raw_size != place.frame.raw_size:
            continue  # nothing can be made of it, but it may be sound by itself
        step = _Step(before.nbytes + place.frame.size, before.links + 1, place)
        if best is None or step[:2] < best[:2]:
            best = step
    return best


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
