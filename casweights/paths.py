"""The cheapest way to rebuild a chunk from frames, each the difference from another chunk."""

from __future__ import annotations

import heapq
import threading
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from casweights.ids import Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence

    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId

MAX_LINKS = 4096  # frames in a row that a reader follows


class FrameTable:
    """Frames by their chunk.

    Attributes:
        version: Grows with every change that may open or close ways to chunks that were known.
    """

    def __init__(self) -> None:
        self._known: dict[ChunkId, tuple[Location, ...]] = {}
        self._excluded: set[Location] = set()
        self._doubted: set[Suspect] = set()
        self._unknown_bases: set[ChunkId] = set()
        self.version = 0

    def __iter__(self) -> Iterator[ChunkId]:
        """Every chunk that is known."""
        return iter(list(self._known))

    def locations(self) -> Iterator[Location]:
        """All frames, the excluded ones included."""
        return (place for places in list(self._known.values()) for place in places)

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All frames of a chunk that are neither excluded nor in doubt."""
        found = self.all_frames(chunk)
        if not self._doubted:
            return found
        return [place for place in found if not self.doubts(place)]

    def all_frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All frames of a chunk that are not excluded."""
        found = self._known.get(chunk, ())
        if not self._excluded:
            return found
        return [place for place in found if place not in self._excluded]

    def doubt(self, suspects: Collection[Suspect]) -> None:
        """From now on, these frames and all frames of these packs are in doubt, and no others."""
        if self._doubted != suspects:
            self._doubted = set(suspects)
            self.version += 1

    def doubts(self, location: Location) -> bool:
        """Whether a frame is in doubt."""
        return not self._doubted.isdisjoint((location.suspect, Suspect(location.pack, None)))

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

    def retain(self, packs: Iterable[PackId]) -> None:
        """Forget the frames of all other packs."""
        kept, known = set(packs), FrameTable()
        known.add(place for place in self.locations() if place.pack in kept)
        self._excluded = {place for place in self._excluded if place.pack in kept}
        self._unknown_bases = known._unknown_bases
        self._known = known._known  # at once, because other threads look for chunks meanwhile
        self.version += 1

    def clear(self) -> None:
        """Forget all frames; what was in doubt stays so."""
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


class _Node(NamedTuple):
    """A chunk as frames of one raw size have it; only forged stores have several sizes."""

    chunk: ChunkId
    raw_size: int


class _Step(NamedTuple):
    """The last step of the best way to a chunk."""

    nbytes: int  # of the whole way
    links: int
    frame: Location | None  # None for what the reader has


_NOTHING = _Step(0, 0, None)


class _Trail(NamedTuple):
    """Frames from a chunk on to the wanted one."""

    place: Location
    next: _Trail | None


class _Candidate(NamedTuple):
    """A way back from the wanted chunk, ordered by what it takes."""

    nbytes: int  # with what is known to lie before `node`
    links: int
    number: int
    node: _Node | None  # where it has come to; None for a frame without a base
    trail: _Trail | None


class PathFinder:
    """Finds cheapest paths through frames, and remembers them while no other ways open.

    Args:
        table: The frames.
        have: Chunks that cost nothing, because the reader has them.
        doubted: Whether ways may lead through frames in doubt.
    """

    def __init__(
        self, table: FrameTable, have: Container[ChunkId] = (), *, doubted: bool = False
    ) -> None:
        self._table = table
        self._have = have
        self._frames = table.all_frames if doubted else table.frames
        self._lock = threading.Lock()
        self._steps: dict[_Node, _Step] = {}
        self._version = -1

    def path(self, chunk: ChunkId) -> Path | None:
        """The path of the fewest stored bytes; None where frames are missing."""
        with self._lock:
            if self._version != self._table.version:
                self._steps, self._version = {}, self._table.version
            if chunk in self._have:
                return Path((), 0)
            sizes = {place.frame.raw_size for place in self._frames(chunk)}
            found = [self._find(_Node(chunk, size)) for size in sizes]
            paths = [path for path in found if path is not None]
            return min(paths, key=lambda path: path.nbytes, default=None)

    def _find(self, wanted: _Node) -> Path | None:
        if wanted not in self._steps:
            self._search(wanted)
        step = self._steps.get(wanted)
        return None if step is None else Path(tuple(self._trace(step))[::-1], step.nbytes)

    def _search(self, wanted: _Node) -> None:
        """Dijkstra's algorithm, from the chunk back to the nearest place where a way can begin.

        What lies further back than that is never looked at, however long the history.
        """
        numbers = count()  # against ties
        queue = [_Candidate(0, 0, next(numbers), wanted, None)]
        done: set[_Node] = set()
        while queue:
            nearest = heapq.heappop(queue)
            if nearest.links > MAX_LINKS:
                continue
            known = self._known(nearest.node)
            if known is not None:
                self._keep(nearest.trail, known)
                return
            if nearest.node is None or nearest.node in done:
                continue
            done.add(nearest.node)
            for place in self._frames(nearest.node.chunk):
                if place.frame.raw_size == nearest.node.raw_size:
                    heapq.heappush(queue, self._back(nearest, place, next(numbers)))

    def _back(self, nearest: _Candidate, place: Location, number: int) -> _Candidate:
        """One frame further back. Its base must have its raw size, or nothing can be made of it."""
        frame = place.frame
        base = None if frame.base is None else _Node(frame.base, frame.raw_size)
        before = self._known(base) or _NOTHING
        nbytes = nearest.nbytes + frame.size + before.nbytes
        links = nearest.links + 1 + before.links
        return _Candidate(nbytes, links, number, base, _Trail(place, nearest.trail))

    def _known(self, node: _Node | None) -> _Step | None:
        """The best way to a chunk, if it is known already or is none."""
        if node is None:
            return _NOTHING
        if node not in self._steps and node.chunk in self._have:
            self._steps[node] = _NOTHING
        return self._steps.get(node)

    def _keep(self, trail: _Trail | None, before: _Step) -> None:
        """Remember the best way to all chunks of a trail."""
        while trail is not None:
            frame = trail.place.frame
            before = _Step(before.nbytes + frame.size, before.links + 1, trail.place)
            self._steps[_Node(frame.chunk, frame.raw_size)] = before
            trail = trail.next

    def _trace(self, step: _Step) -> Iterator[Location]:
        """Follow the steps back from a chunk to where they begin."""
        while step.frame is not None:
            yield step.frame
            frame = step.frame.frame
            step = (
                _NOTHING if frame.base is None else self._steps[_Node(frame.base, frame.raw_size)]
            )
