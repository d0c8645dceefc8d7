"""The search for the cheapest chain of frames from which a chunk is rebuilt."""

from __future__ import annotations

import heapq
import threading
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.chain import NOTHING, Chain, Cost, Node, Step
from casweights.database.frame_table import FEW_FRAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from casweights.database.frame_table import FrameTable
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId

MAX_LINKS = 4096  # frames in a chain; writers make fewer than 100, forged chains have any number


class Trail(NamedTuple):
    """A linked list of frames that leads from some chunk to the wanted chunk."""

    location: Location
    next: Trail | None


class _Candidate(NamedTuple):
    """An incomplete chain in the queue of the search: its frames up to the wanted chunk.

    The order of the fields is the order of the queue: the cheapest candidate comes first.
    """

    bound: int  # bytes that a chain with this end has at least, and exactly if it is complete
    links: int
    number: int  # unique, so that the queue never compares the fields that follow
    node: Node | None  # the base of its first frame; None if that frame is whole
    nbytes: int  # of its frames
    trail: Trail | None


def _restricted(
    usable: Callable[[ChunkId], Sequence[Location]], within: Container[ChunkId]
) -> Callable[[ChunkId], Sequence[Location]]:
    """Return a function that finds the frames of some chunks only."""
    return lambda chunk: usable(chunk) if chunk in within else ()


class ChainFinder:
    """Finds the cheapest chains without derived frames; remembers them until the table changes.

    Every look-up first calls `_catch_up`, which compares the table's `version` and `exclusions`
    with those of the last look-up. A new version discards all results. An exclusion discards only
    the chains through that frame: it can make no other chain cheaper, and while a damaged store
    is read there may be one exclusion for every chunk.

    Safe for use from several threads: a finder has one lock, held for the whole of a look-up. The
    owner of the table may change it at the same time.

    Args:
        table: The frames.
        have: Chunks that cost nothing, because the reader has them. Unless they are frozen, they
            may become more, and what has no chain is searched again each time.
        within: The chunks that chains may lead through, which must not change; None for all.
        frames: Returns the frames of a chunk that may be used; by default those that are not in
            doubt, see `FrameTable`.
    """

    def __init__(
        self,
        table: FrameTable,
        have: Container[ChunkId] = (),
        *,
        within: Container[ChunkId] | None = None,
        frames: Callable[[ChunkId], Sequence[Location]] | None = None,
    ) -> None:
        self._table = table
        self._have = have
        self._is_frozen = isinstance(have, (tuple, frozenset))
        usable = frames or table.frames
        self._frames = usable if within is None else _restricted(usable, within)
        self._lock = threading.Lock()
        self._steps: dict[Node, Step] = {}
        self._dead: set[Node] = set()  # nodes that no chain leads to
        self._best: dict[ChunkId, Step | None] = {}  # the last step to a chunk with many frames
        self._by_size: dict[ChunkId, dict[int, list[Location]]] = {}  # of chunks with many frames
        self._version = -1
        self._exclusions = 0  # number of the table's exclusions that were applied here
        # The nodes whose steps are built on each node. Made at the first exclusion, because most
        # stores have none.
        self._after: dict[Node, list[Node]] | None = None

    def chain(self, chunk: ChunkId) -> Chain | None:
        """Return the chain of the fewest stored bytes.

        Returns:
            The chain, without frames if the reader has the chunk; None if no chain of at most
            `MAX_LINKS` usable frames leads to it.
        """
        with self._lock:
            step = self._last_step(chunk)
            return None if step is None else Chain(step)

    def plain_chain(self, chunk: ChunkId) -> Chain | None:
        """Return the chain of the fewest stored bytes of those without derived frames."""
        with self._lock:
            step = self._last_plain_step(chunk)
            return None if step is None else Chain(step)

    def root(self, node: Node) -> Step | None:
        """Return the end of the cheapest chain to a chunk of this size, without derived frames."""
        with self._lock:
            self._catch_up()
            return self._root(node)

    def reachable(self, chunks: Sequence[ChunkId | None]) -> list[ChunkId | None]:
        """Return these chunks, with None in place of those that have no chain."""
        with self._lock:
            return [
                chunk if chunk is not None and self._last_step(chunk) is not None else None
                for chunk in chunks
            ]

    def packs(self, chunks: Iterable[ChunkId], seen: set[Node]) -> list[tuple[PackId, ...]]:
        """Return the packs of the frames of each chunk's chain, from the last to the first.

        Args:
            chunks: The chunks.
            seen: Ends the walk where an earlier one passed, as in `Chain.back`.

        Returns:
            A tuple for each chunk; empty if the chunk has no chain, or if the reader has it.
        """
        with self._lock:
            steps = [self._last_step(chunk) or NOTHING for chunk in chunks]
            return [tuple(location.pack for location in Chain(step).back(seen)) for step in steps]

    def cost(self, chunk: ChunkId) -> Cost | None:
        """Return the cost of the cheapest chain; None where `chain` returns None."""
        with self._lock:
            step = self._last_step(chunk)
            return None if step is None else Cost(step.nbytes, step.links)

    def forget(self, kept: Container[ChunkId]) -> None:
        """Forget what was found about other chunks than `kept`; it is found again if needed."""
        with self._lock:
            self._steps = {node: step for node, step in self._steps.items() if node.chunk in kept}
            self._dead = {node for node in self._dead if node.chunk in kept}
            self._best, self._by_size, self._after = {}, {}, None

    def _last_step(self, chunk: ChunkId) -> Step | None:
        """Return the end of the chain to a chunk that this finder prefers."""
        return self._last_plain_step(chunk)

    def _last_plain_step(self, chunk: ChunkId) -> Step | None:
        """Return the end of the cheapest chain to a chunk, from memory or by a search."""
        self._catch_up()
        if chunk in self._have:
            return NOTHING
        frames = self._frames(chunk)
        if len(frames) < FEW_FRAMES:
            return self._cheapest(chunk, frames)
        if chunk not in self._best:
            self._best[chunk] = self._cheapest(chunk, frames)
        return self._best[chunk]

    def _root(self, node: Node) -> Step | None:
        self._table.seek(node.chunk)
        return NOTHING if node.chunk in self._have else self._find(node)

    def _catch_up(self) -> None:
        """Discard the results that changes of the table have made wrong."""
        table = self._table
        if self._version != table.version:
            self._version, self._exclusions = table.version, len(table.exclusions)
            self._steps, self._dead, self._best, self._by_size = {}, set(), {}, {}
            self._after = None
        while self._exclusions < len(table.exclusions):
            self._discard_through(table.exclusions[self._exclusions])
            self._exclusions += 1

    def _discard_through(self, location: Location) -> None:
        """Discard the chains through an excluded frame. All others stay the cheapest."""
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
        discarded = [node]
        while discarded:
            node = discarded.pop()
            self._steps.pop(node, None)
            self._best.pop(node.chunk, None)
            discarded += self._after.pop(node, ())

    def _follows(self, node: Node, step: Step) -> None:
        """Record which node a step is built on, if `_after` is in use."""
        if self._after is not None and step.frame is not None:
            base = step.frame.frame.base
            if base is not None:
                self._after.setdefault(Node(base, node.raw_size), []).append(node)

    def _cheapest(self, chunk: ChunkId, frames: Sequence[Location]) -> Step | None:
        """Return the end of the cheapest chain to a chunk, over all sizes that frames claim."""
        if len(frames) == 1:
            return self._find(Node(chunk, frames[0].frame.raw_size))
        sizes = {location.frame.raw_size for location in frames}
        found = [self._find(Node(chunk, size)) for size in sizes]
        steps = [step for step in found if step is not None]
        return min(steps, key=lambda step: step.nbytes, default=None)

    def _find(self, wanted: Node) -> Step | None:
        """Return the end of the cheapest chain to a node; search if it is not known yet."""
        step = self._steps.get(wanted)
        if step is None and wanted not in self._dead:
            self._search(wanted)
            step = self._steps.get(wanted)
        return step

    def _search(self, wanted: Node) -> None:
        """Find the cheapest chain to a node and keep it in `_steps`, or add the node to `_dead`.

        This is the A* algorithm, from the wanted chunk back along bases to the nearest whole
        frame, chunk that the reader has, or known chain. Each chain begins with a whole frame
        unless the reader has a chunk, so the smallest one is a bound, and differences that add up
        to more than those of the cheapest chain are not followed. The time does not depend on the
        length of the history behind it.
        """
        is_cut = False
        numbers = count()
        rest = self._table.least_whole(wanted.raw_size) if self._have == () else 0
        queue = [_Candidate(0, 0, next(numbers), wanted, 0, None)]
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
                if not location.frame.roots:
                    heapq.heappush(queue, self._back(nearest, location, next(numbers), rest))
        # Where `have` can grow without a change of the table, no chain yet does not mean none at
        # all. Where the limit cut the search, `done` also contains nodes that other chains reach
        # within the limit.
        if self._is_frozen:
            self._dead |= self._out_of_reach() if is_cut else done

    def _of_size(self, node: Node) -> Sequence[Location]:
        """Return the frames of a chunk that claim the raw size of a node."""
        found = self._frames(node.chunk)
        if len(found) < FEW_FRAMES:
            return [location for location in found if location.frame.raw_size == node.raw_size]
        if node.chunk not in self._by_size:
            sizes = self._by_size[node.chunk] = {}
            for location in found:
                sizes.setdefault(location.frame.raw_size, []).append(location)
        return self._by_size[node.chunk].get(node.raw_size, ())

    def _out_of_reach(self) -> set[Node]:
        """Return all nodes of the table that no chain of up to `MAX_LINKS` frames leads to."""
        after: dict[Node | None, list[Node]] = {}
        for chunk in self._table:
            for frame in (at.frame for at in self._frames(chunk) if not at.frame.roots):
                base = None if frame.base is None else Node(frame.base, frame.raw_size)
                if frame.base is not None:
                    self._table.seek(frame.base)
                after.setdefault(base, []).append(Node(frame.chunk, frame.raw_size))
        out = {node for nodes in after.values() for node in nodes}
        layer: set[Node] = set(after.pop(None, ()))
        for node in [node for node in after if node is not None and node.chunk in self._have]:
            layer.update(after.pop(node))
        for _ in range(MAX_LINKS):
            out -= layer
            layer = {node for base in layer for node in after.pop(base, ())} & out
        return out

    def _back(self, nearest: _Candidate, location: Location, number: int, rest: int) -> _Candidate:
        """Return a candidate with one more frame at its beginning.

        Args:
            nearest: The candidate.
            location: The frame.
            number: The number of the new one.
            rest: Bytes that the chain to a chunk has at least.
        """
        frame = location.frame
        nbytes, links = nearest.nbytes + frame.size, nearest.links + 1
        trail = Trail(location, nearest.trail)
        if frame.base is None:
            return _Candidate(nbytes, links, number, None, nbytes, trail)
        self._table.seek(frame.base)
        base = Node(frame.base, frame.raw_size)
        before = self._known(base)
        if before is None:
            return _Candidate(nbytes + rest, links, number, base, nbytes, trail)
        bound, links = nbytes + before.nbytes, links + before.links
        return _Candidate(bound, links, number, base, nbytes, trail)

    def _known(self, node: Node | None) -> Step | None:
        """Return the cheapest chain to a node if it is known or empty; None if it is unknown."""
        if node is None:
            return NOTHING
        if node not in self._steps and node.chunk in self._have:
            self._steps[node] = NOTHING
        return self._steps.get(node)

    def _keep(self, trail: Trail | None, before: Step) -> None:
        """Record the cheapest chains to all chunks of a trail, which begins after `before`."""
        while trail is not None:
            frame = trail.location.frame
            node, before = Node(frame.chunk, frame.raw_size), before.then(trail.location)
            self._steps[node] = before
            self._follows(node, before)
            trail = trail.next
