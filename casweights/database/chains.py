"""The cheapest way to rebuild a chunk from frames, each the difference from another chunk."""

from __future__ import annotations

import heapq
import threading
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from casweights.ids import Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence

    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId

MAX_LINKS = 4096  # frames in a row that a reader follows
_FEW = 8  # frames of a chunk; honest stores have no more


class FrameTable:
    """Frames by their chunk.

    Attributes:
        version: Grows with every change that may open or close ways to chunks that were known,
            except for exclusions.
        exclusions: All frames that were excluded, in order.
    """

    def __init__(self) -> None:
        self._known: dict[ChunkId, list[Location]] = {}
        self._many: dict[ChunkId, set[Location]] = {}  # the same, for chunks with many frames
        self._excluded: set[Location] = set()
        self._doubted: set[Suspect] = set()
        self._unknown_bases: set[ChunkId] = set()
        self.version = 0
        self.exclusions: list[Location] = []

    def __iter__(self) -> Iterator[ChunkId]:
        """Every chunk that is known."""
        return iter(list(self._known))

    def locations(self) -> Iterator[Location]:
        """All frames, the excluded ones included."""
        yield from (
            location for locations in list(self._known.values()) for location in list(locations)
        )
        yield from list(self._excluded)

    def frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All frames of a chunk that are neither excluded nor in doubt."""
        found = self.all_frames(chunk)
        if not self._doubted:
            return found
        return [location for location in found if not self.doubts(location)]

    def all_frames(self, chunk: ChunkId) -> Sequence[Location]:
        """All frames of a chunk that are not excluded."""
        return self._known.get(chunk, ())

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
            if location in self._excluded or self._has(location):
                continue
            is_new = chunk not in self._known
            if not (is_new or chunk in new) or chunk in self._unknown_bases:
                self.version += 1
                self._unknown_bases.discard(chunk)
            if is_new:
                new.add(chunk)
            if base is not None and base not in self._known:
                self._unknown_bases.add(base)
            self._known.setdefault(chunk, []).append(location)

    def _has(self, location: Location) -> bool:
        chunk = location.frame.chunk
        known = self._known.get(chunk, ())
        if len(known) < _FEW:
            return location in known
        many = self._many.get(chunk)
        if many is None:
            many = self._many[chunk] = set(known)
        if location in many:
            return True
        many.add(location)
        return False

    def exclude(self, locations: Iterable[Location]) -> None:
        """Count frames as missing. For each chunk this takes time for all its frames."""
        locations = list(locations)
        self._excluded.update(locations)
        for chunk in {location.frame.chunk for location in locations}:
            known = self._known.get(chunk, [])
            self._known[chunk] = [location for location in known if location not in self._excluded]
            self._many.pop(chunk, None)
        self.exclusions += locations

    def retain(self, packs: Iterable[PackId]) -> None:
        """Forget the frames of all other packs."""
        kept, known = set(packs), FrameTable()
        known._excluded = {location for location in self._excluded if location.pack in kept}
        known.add(location for location in self.locations() if location.pack in kept)
        self._excluded, self._many = known._excluded, known._many
        self._unknown_bases = known._unknown_bases
        self._known = known._known  # at once, because other threads look for chunks meanwhile
        self.version += 1

    def clear(self) -> None:
        """Forget all frames; what was in doubt stays so."""
        self._known.clear()
        self._many.clear()
        self._excluded.clear()
        self._unknown_bases.clear()
        self.version += 1


class Cost(NamedTuple):
    """What rebuilding a chunk takes.

    Attributes:
        nbytes: Stored bytes of the frames.
        links: How many there are.
    """

    nbytes: int
    links: int


class Node(NamedTuple):
    """A chunk as frames of one raw size have it; only forged stores have several sizes."""

    chunk: ChunkId
    raw_size: int


class _Step(NamedTuple):
    """The last step of the best way to a chunk."""

    nbytes: int  # of the whole way
    links: int
    frame: Location | None  # None for what the reader has
    first: Location | None  # of the whole way
    before: _Step | None

    def then(self, frame: Location) -> _Step:
        """The way that goes on with a frame."""
        nbytes, first = self.nbytes + frame.frame.size, self.first or frame
        return _Step(nbytes, self.links + 1, frame, first, self)


_NOTHING = _Step(0, 0, None, None, None)


class Chain:
    """How to rebuild a chunk: frames, each the base of the next one.

    A chain takes as little to make as its last frame, however long it is.

    Attributes:
        nbytes: Stored bytes of the frames.
        links: How many there are.
    """

    def __init__(self, step: _Step) -> None:
        self.nbytes = step.nbytes
        self.links = step.links
        self._step = step

    @property
    def base(self) -> ChunkId | None:
        """The chunk that decoding begins with, because the reader has it; None if there is none."""
        first = self._step.first
        return None if first is None else first.frame.base

    @cached_property
    def frames(self) -> tuple[Location, ...]:
        """The frames in the order of decoding. The first has no base, or one the reader has."""
        return tuple(self.back())[::-1]

    def back(self, seen: set[Node] | None = None) -> Iterator[Location]:
        """The frames, the last one first.

        Args:
            seen: Shared by several chains, and filled by this method: a chain ends with the first
                frame whose chunk another chain has passed. What lies before that has been given.
        """
        step = self._step
        while step.frame is not None and step.before is not None:
            yield step.frame
            if seen is not None:
                node = Node(step.frame.frame.chunk, step.frame.frame.raw_size)
                if node in seen:
                    return
                seen.add(node)
            step = step.before


class _Trail(NamedTuple):
    """Frames from a chunk on to the wanted one."""

    location: Location
    next: _Trail | None


class _Candidate(NamedTuple):
    """A way back from the wanted chunk, ordered by what it takes."""

    nbytes: int  # with what is known to lie before `node`
    links: int
    number: int
    node: Node | None  # where it has come to; None for a frame without a base
    trail: _Trail | None


class ChainFinder:
    """Finds cheapest chains through frames, and remembers them while no other ways open.

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
        self._steps: dict[Node, _Step] = {}
        self._dead: set[Node] = set()  # where no way leads to
        self._best: dict[ChunkId, _Step | None] = {}  # the last step to a chunk with many frames
        self._by_size: dict[ChunkId, dict[int, list[Location]]] = {}  # of chunks with many frames
        self._version = -1
        self._exclusions = 0  # how many of the table's are known here
        self._after: dict[Node, list[Node]] | None = None  # what is built on each step, if needed

    def chain(self, chunk: ChunkId) -> Chain | None:
        """The chain of the fewest stored bytes; None where frames are missing."""
        with self._lock:
            step = self._last_step(chunk)
            return None if step is None else Chain(step)

    def reachable(self, chunks: Sequence[ChunkId | None]) -> list[ChunkId | None]:
        """These chunks, with None in location of those that no chain leads to."""
        with self._lock:
            return [
                chunk if chunk is not None and self._last_step(chunk) is not None else None
                for chunk in chunks
            ]

    def packs(self, chunks: Iterable[ChunkId], seen: set[Node]) -> list[tuple[PackId, ...]]:
        """The packs along each chunk's chain, the last one first; none where frames are missing.

        See `Chain.back` for `seen`.
        """
        with self._lock:
            steps = [self._last_step(chunk) or _NOTHING for chunk in chunks]
            return [tuple(location.pack for location in Chain(step).back(seen)) for step in steps]

    def cost(self, chunk: ChunkId) -> Cost | None:
        """What that chain takes, for much less than the chain itself."""
        with self._lock:
            step = self._last_step(chunk)
            return None if step is None else Cost(step.nbytes, step.links)

    def _last_step(self, chunk: ChunkId) -> _Step | None:
        self._catch_up()
        if chunk in self._have:
            return _NOTHING
        frames = self._frames(chunk)
        if len(frames) < _FEW:
            return self._cheapest(chunk, frames)
        if chunk not in self._best:
            self._best[chunk] = self._cheapest(chunk, frames)
        return self._best[chunk]

    def _catch_up(self) -> None:
        """Forget what is no longer true since the table has changed."""
        table = self._table
        if self._version != table.version:
            self._version, self._exclusions = table.version, len(table.exclusions)
            self._steps, self._dead, self._best, self._by_size = {}, set(), {}, {}
            self._after = None
        while self._exclusions < len(table.exclusions):
            self._close(table.exclusions[self._exclusions])
            self._exclusions += 1

    def _close(self, location: Location) -> None:
        """Forget the ways through a frame. All others stay the cheapest."""
        node = Node(location.frame.chunk, location.frame.raw_size)
        self._best.pop(node.chunk, None)
        self._by_size.pop(node.chunk, None)
        step = self._steps.get(node)
        if step is None or step.frame != location:
            return
        if self._after is None:
            self._after = {}
            for other, taken in self._steps.items():
                self._follows(other, taken)
        closed = [node]
        while closed:
            node = closed.pop()
            self._steps.pop(node, None)
            self._best.pop(node.chunk, None)
            closed += self._after.pop(node, ())

    def _follows(self, node: Node, step: _Step) -> None:
        """Take note of what the step to a chunk is built on, once that matters."""
        if self._after is not None and step.frame is not None:
            base = step.frame.frame.base
            if base is not None:
                self._after.setdefault(Node(base, node.raw_size), []).append(node)

    def _cheapest(self, chunk: ChunkId, frames: Sequence[Location]) -> _Step | None:
        if len(frames) == 1:
            return self._find(Node(chunk, frames[0].frame.raw_size))
        sizes = {location.frame.raw_size for location in frames}
        found = [self._find(Node(chunk, size)) for size in sizes]
        steps = [step for step in found if step is not None]
        return min(steps, key=lambda step: step.nbytes, default=None)

    def _find(self, wanted: Node) -> _Step | None:
        step = self._steps.get(wanted)
        if step is None and wanted not in self._dead:
            self._search(wanted)
            step = self._steps.get(wanted)
        return step

    def _search(self, wanted: Node) -> None:
        """Dijkstra's algorithm, from the chunk back to the nearest location where a way can begin.

        What lies further back than that is never looked at, however long the history.
        """
        is_cut = False
        numbers = count()  # against ties
        queue = [_Candidate(0, 0, next(numbers), wanted, None)]
        done: set[Node] = set()
        while queue:
            nearest = heapq.heappop(queue)
            if nearest.links > MAX_LINKS:
                is_cut = True
                continue
            known = self._known(nearest.node)
            if known is not None:
                self._keep(nearest.trail, known)
                return
            if nearest.node is None or nearest.node in done or nearest.node in self._dead:
                continue
            done.add(nearest.node)
            for location in self._of_size(nearest.node):
                heapq.heappush(queue, self._back(nearest, location, next(numbers)))
        if self._have == ():  # otherwise a way may open later
            self._dead |= self._out_of_reach() if is_cut else done

    def _of_size(self, node: Node) -> Sequence[Location]:
        """The frames of a chunk that have one raw size."""
        found = self._frames(node.chunk)
        if len(found) < _FEW:
            return [location for location in found if location.frame.raw_size == node.raw_size]
        if node.chunk not in self._by_size:
            sizes = self._by_size[node.chunk] = {}
            for location in found:
                sizes.setdefault(location.frame.raw_size, []).append(location)
        return self._by_size[node.chunk].get(node.raw_size, ())

    def _out_of_reach(self) -> set[Node]:
        """What `MAX_LINKS` frames do not lead to, all over the table."""
        after: dict[Node | None, list[Node]] = {}
        for chunk in self._table:
            for frame in (location.frame for location in self._frames(chunk)):
                base = None if frame.base is None else Node(frame.base, frame.raw_size)
                after.setdefault(base, []).append(Node(frame.chunk, frame.raw_size))
        out = {node for nodes in after.values() for node in nodes}
        layer: set[Node] = set(after.pop(None, ()))
        for _ in range(MAX_LINKS):
            out -= layer
            layer = {node for base in layer for node in after.pop(base, ())} & out
        return out

    def _back(self, nearest: _Candidate, location: Location, number: int) -> _Candidate:
        """One frame further back. Its base must have its raw size, or nothing can be made of it."""
        frame = location.frame
        base = None if frame.base is None else Node(frame.base, frame.raw_size)
        before = self._known(base) or _NOTHING
        nbytes = nearest.nbytes + frame.size + before.nbytes
        links = nearest.links + 1 + before.links
        return _Candidate(nbytes, links, number, base, _Trail(location, nearest.trail))

    def _known(self, node: Node | None) -> _Step | None:
        """The best way to a chunk, if it is known already or is none."""
        if node is None:
            return _NOTHING
        if node not in self._steps and node.chunk in self._have:
            self._steps[node] = _NOTHING
        return self._steps.get(node)

    def _keep(self, trail: _Trail | None, before: _Step) -> None:
        """Remember the best way to all chunks of a trail."""
        while trail is not None:
            frame = trail.location.frame
            node, before = Node(frame.chunk, frame.raw_size), before.then(trail.location)
            self._steps[node] = before
            self._follows(node, before)
            trail = trail.next
