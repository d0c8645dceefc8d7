"""Chains: the frames from which a chunk is rebuilt, and the search for the cheapest ones."""

from __future__ import annotations

import heapq
import threading
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.frame_table import FEW_FRAMES

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from casweights.database.frame_table import FrameTable
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId

MAX_LINKS = 4096  # frames of a chain that a reader follows; forged chains may have any number


class Cost(NamedTuple):
    """What rebuilding a chunk costs.

    Attributes:
        nbytes: Stored bytes of the frames.
        links: How many there are.
    """

    nbytes: int
    links: int


class Node(NamedTuple):
    """A chunk with the raw size of its frames; only forged stores have several sizes of one."""

    chunk: ChunkId
    raw_size: int


class _Step(NamedTuple):
    """The last frame of the cheapest chain to a chunk, and what comes before it."""

    nbytes: int  # of the whole chain
    links: int
    frame: Location | None  # None for a chunk that the reader has
    first: Location | None  # of the whole chain
    before: _Step | None

    def then(self, frame: Location) -> _Step:
        """The chain that goes on with a frame."""
        nbytes, first = self.nbytes + frame.frame.size, self.first or frame
        return _Step(nbytes, self.links + 1, frame, first, self)


_NOTHING = _Step(0, 0, None, None, None)


class Chain:
    """How to rebuild a chunk: frames, each of the base of the next one.

    Chains share their beginnings, so making one costs the same however long it is.

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
            seen: Shared by several chains, and filled by this method: it stops after the first
                frame whose chunk an earlier chain has passed, which gave the frames before it.
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
    """The frames from a chunk to the wanted one."""

    location: Location
    next: _Trail | None


class _Candidate(NamedTuple):
    """The end of a chain, as far as the search has come back from the wanted chunk.

    Candidates are ordered by their cost.
    """

    nbytes: int  # with the known chain to `node`, if there is one
    links: int
    number: int
    node: Node | None  # the base of its first frame; None if that needs none
    trail: _Trail | None


class ChainFinder:
    """Finds the cheapest chains, and remembers them until the table may hold cheaper ones.

    May be used from several threads at once.

    Args:
        table: The frames.
        have: Chunks that cost nothing, because the reader has them.
        doubted: Whether frames in doubt may be used.
    """

    def __init__(
        self, table: FrameTable, have: Container[ChunkId] = (), *, doubted: bool = False
    ) -> None:
        self._table = table
        self._have = have
        self._frames = table.all_frames if doubted else table.frames
        self._lock = threading.Lock()
        self._steps: dict[Node, _Step] = {}
        self._dead: set[Node] = set()  # to which there is no chain
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
        """These chunks, with None in place of those that have no chain."""
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
        """The cost of that chain, which is found faster than the chain itself."""
        with self._lock:
            step = self._last_step(chunk)
            return None if step is None else Cost(step.nbytes, step.links)

    def _last_step(self, chunk: ChunkId) -> _Step | None:
        self._catch_up()
        if chunk in self._have:
            return _NOTHING
        frames = self._frames(chunk)
        if len(frames) < FEW_FRAMES:
            return self._cheapest(chunk, frames)
        if chunk not in self._best:
            self._best[chunk] = self._cheapest(chunk, frames)
        return self._best[chunk]

    def _catch_up(self) -> None:
        """Forget what changes of the table have made wrong."""
        table = self._table
        if self._version != table.version:
            self._version, self._exclusions = table.version, len(table.exclusions)
            self._steps, self._dead, self._best, self._by_size = {}, set(), {}, {}
            self._after = None
        while self._exclusions < len(table.exclusions):
            self._close(table.exclusions[self._exclusions])
            self._exclusions += 1

    def _close(self, location: Location) -> None:
        """Forget the chains through a frame. All others stay the cheapest."""
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
        """Remember what the step to a chunk is built on, once a frame was excluded."""
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
        """Dijkstra's algorithm, from the chunk back to the nearest frame that can begin a chain.

        Frames further back are never looked at, however long the history.
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
        if self._have == ():  # otherwise a chain may become possible later
            self._dead |= self._out_of_reach() if is_cut else done

    def _of_size(self, node: Node) -> Sequence[Location]:
        """The frames of a chunk that have one raw size."""
        found = self._frames(node.chunk)
        if len(found) < FEW_FRAMES:
            return [location for location in found if location.frame.raw_size == node.raw_size]
        if node.chunk not in self._by_size:
            sizes = self._by_size[node.chunk] = {}
            for location in found:
                sizes.setdefault(location.frame.raw_size, []).append(location)
        return self._by_size[node.chunk].get(node.raw_size, ())

    def _out_of_reach(self) -> set[Node]:
        """All chunks of the table to which no chain of `MAX_LINKS` frames leads."""
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
        """A candidate with one more frame, whose base must have the same raw size."""
        frame = location.frame
        base = None if frame.base is None else Node(frame.base, frame.raw_size)
        before = self._known(base) or _NOTHING
        nbytes = nearest.nbytes + frame.size + before.nbytes
        links = nearest.links + 1 + before.links
        return _Candidate(nbytes, links, number, base, _Trail(location, nearest.trail))

    def _known(self, node: Node | None) -> _Step | None:
        """The cheapest chain to a chunk, if it is known already or has no frames."""
        if node is None:
            return _NOTHING
        if node not in self._steps and node.chunk in self._have:
            self._steps[node] = _NOTHING
        return self._steps.get(node)

    def _keep(self, trail: _Trail | None, before: _Step) -> None:
        """Remember the cheapest chains to all chunks of a trail."""
        while trail is not None:
            frame = trail.location.frame
            node, before = Node(frame.chunk, frame.raw_size), before.then(trail.location)
            self._steps[node] = before
            self._follows(node, before)
            trail = trail.next
