"""Which chunks the store has, and where their frames lie."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from casweights.config import KiB
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE, corrupt
from casweights.format.fields import parse_id
from casweights.format.pack import TRAILER_SIZE, Location, index_span, parse_index
from casweights.ids import PackId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectInfo, ObjectStore

_TAIL_GUESS = 64 * KiB
_READERS = 8


class ChunkIndex:
    """Locations of chunks, learnt from two sources.

    *Hints* come with snapshots: they save looking into packs, and may be out of date. The packs'
    own indexes are the truth; `load` reads those that it has not read yet.

    Attributes:
        damaged: Packs whose index could not be read, with the reason. Their chunks count as
            missing.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._hints: dict[ChunkId, Location] = {}
        self._known: dict[ChunkId, Location] = {}
        self._spares: dict[ChunkId, list[Location]] = {}
        self._bad: set[ChunkId] = set()
        self._packs: set[str] = set()
        self.damaged: dict[str, CasweightsError] = {}

    def hint(self, locations: Mapping[ChunkId, Location]) -> None:
        """Remember where a snapshot says that its chunks lie."""
        self._hints.update(locations)

    def load(self) -> None:
        """Read the indexes of all packs that appeared since the last time."""
        with self._lock:
            listed = list(self._store.list(names.PACKS))
            if not self._packs <= {info.name for info in listed}:
                self._forget()  # some are gone, and their chunks with them
            new = [info for info in listed if info.name not in self._packs]
            with ThreadPoolExecutor(_READERS) as pool:  # of its own: callers are on the workers
                for info, result in zip(new, pool.map(self._try_read, new), strict=True):
                    if isinstance(result, CasweightsError):
                        self.damaged[info.name] = result
                    else:
                        self.add(info.name, result)

    def _forget(self) -> None:
        for known in (self._known, self._spares, self._bad, self._packs, self.damaged):
            known.clear()

    def distrust(self, chunk: ChunkId, why: CasweightsError) -> None:
        """Count a chunk as missing, and its packs as damaged, so that it will be written anew."""
        with self._lock:
            self._bad.add(chunk)
            for location in (self._known.get(chunk), *self._spares.get(chunk, ())):
                if location is not None:
                    self.damaged[names.pack_name(location.pack)] = why

    def _try_read(self, info: ObjectInfo) -> list[Location] | CasweightsError:
        try:
            return read_pack_index(self._store, info)
        except (IntegrityError, NotFoundError) as error:
            return error

    def add(self, pack_name: str, locations: Iterable[Location]) -> None:
        """Take note of all frames of a pack, which need not be read any more."""
        for location in locations:
            chunk = location.frame.chunk
            spare: Location | None = location
            if chunk not in self:  # new, or better than what we know
                spare = self._known.get(chunk)
                self._known[chunk] = location
                self._bad.discard(chunk)
            if spare is not None:
                self._spares.setdefault(chunk, []).append(spare)
        self._packs.add(pack_name)
        self.damaged.pop(pack_name, None)

    def __contains__(self, chunk: ChunkId) -> bool:
        """Whether a pack that was read has this chunk, and nobody found it damaged."""
        return chunk in self._known and chunk not in self._bad

    def __getitem__(self, chunk: ChunkId) -> Location:
        return self._known[chunk]

    def __iter__(self) -> Iterator[Location]:
        """One location of every chunk."""
        return iter(list(self._known.values()))

    def locations(self, chunk: ChunkId) -> Iterator[Location]:
        """Where to try to read a chunk, the likeliest place first; packs are read when needed."""
        tried = set()
        for location in (self._hints.get(chunk), self._known.get(chunk)):
            if location is not None and location not in tried:
                tried.add(location)
                yield location
        self.load()  # waits for a load that is under way: it may bring one more place
        for location in (self._known.get(chunk), *self._spares.get(chunk, ())):
            if location is not None and location not in tried:
                tried.add(location)
                yield location


def read_pack_index(store: ObjectStore, info: ObjectInfo) -> list[Location]:
    """The frames of a pack, from its own index.

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
    first_bytes = store.get(info.name, 0, PREFIX_SIZE) if tail_start else tail[:PREFIX_SIZE]
    frames = parse_index(first_bytes, index, start, pack, info.name)
    return [Location(pack, frame) for frame in frames]
