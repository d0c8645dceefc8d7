"""The search for chains that begin with a derived frame.

Such a chain is found only for a chunk to which no other chain leads. So there is no choice between
a frame that was made from several chunks and one that was not, and whatever has a chain without
derived frames can be a root.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.chain import Node, Step
from casweights.database.chains import MAX_LINKS, ChainFinder, Trail

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from casweights.database.frame_table import FrameTable
    from casweights.format.pack import Frame, Location
    from casweights.ids import ChunkId


class _Candidate(NamedTuple):
    """An incomplete chain in the queue of the search; the cheapest one comes first."""

    nbytes: int  # of its frames, and of those that its beginning needs
    links: int
    number: int  # unique, so that the queue never compares the fields that follow
    node: Node  # the base of its first frame
    begin: Step | None  # what its first frame is made from, if the chain is complete
    trail: Trail | None


class DerivedFinder(ChainFinder):
    """Finds the cheapest chains, and those with a derived frame where there is no other.

    Args:
        table: The frames.
        have: Chunks that cost nothing, because the reader has them.
        for_roots: Finds the chains of roots, for readers to whom a chunk that they have is of no
            use as a root; this finder itself by default.
        within: As for `ChainFinder`.
        frames: As for `ChainFinder`.
    """

    def __init__(
        self,
        table: FrameTable,
        have: Container[ChunkId] = (),
        *,
        for_roots: ChainFinder | None = None,
        within: Container[ChunkId] | None = None,
        frames: Callable[[ChunkId], Sequence[Location]] | None = None,
    ) -> None:
        super().__init__(table, have, within=within, frames=frames)
        self._for_roots = for_roots
        self._derived: dict[Node, Step] = {}
        self._hopeless: set[Node] = set()  # nodes that no chain with a derived frame leads to
        self._seen = -1, 0  # the state of the table for which these two hold

    def forget(self, kept: Container[ChunkId]) -> None:
        super().forget(kept)
        with self._lock:
            self._derived, self._hopeless = {}, set()

    def _last_step(self, chunk: ChunkId) -> Step | None:
        step = super()._last_step(chunk)
        if step is not None or not self._table.has_derived:
            return step
        seen = self._table.version, len(self._table.exclusions)
        if seen != self._seen:
            self._seen, self._derived, self._hopeless = seen, {}, set()
        sizes = {location.frame.raw_size for location in self._frames(chunk)}
        found = [self._find_derived(Node(chunk, size)) for size in sizes]
        return min(filter(None, found), key=lambda step: step.nbytes, default=None)

    def _find_derived(self, wanted: Node) -> Step | None:
        """Return the end of the cheapest chain to a node that begins with a derived frame."""
        if wanted not in self._derived and wanted not in self._hopeless:
            self._search_derived(wanted)
        return self._derived.get(wanted)

    def _search_derived(self, wanted: Node) -> None:
        """Find the cheapest chain to a node, or count the node as hopeless.

        The search goes from the wanted chunk back along bases to the nearest derived frame.
        """
        numbers, done, is_cut = count(), set[Node](), False
        queue = [_Candidate(0, 0, next(numbers), wanted, None, None)]
        while queue:
            nearest = heapq.heappop(queue)
            if nearest.links > MAX_LINKS:
                is_cut = True
            elif nearest.begin is not None:
                self._keep_derived(nearest.trail, nearest.begin)
                return
            elif nearest.node not in done and nearest.node not in self._hopeless:
                done.add(nearest.node)
                for location in self._of_size(nearest.node):
                    new = self._before(nearest, location, next(numbers))
                    if new is not None:
                        heapq.heappush(queue, new)
        # As in `ChainFinder`: what the reader has may grow, and other nodes may be within the limit
        # of links where this one is not.
        if self._is_frozen:
            self._hopeless |= {wanted} if is_cut else done

    def _before(self, nearest: _Candidate, location: Location, number: int) -> _Candidate | None:
        """Return a candidate with one more frame at its beginning; None if it leads nowhere."""
        frame = location.frame
        if frame.base is not None:
            self._table.seek(frame.base)
            node = Node(frame.base, frame.raw_size)
            begin = self._derived.get(node)
        else:
            node, begin = nearest.node, self._roots_of(frame)
            if begin is None:
                return None
        nbytes, links = (begin.nbytes, begin.links) if begin is not None else (0, 0)
        return _Candidate(
            nearest.nbytes + frame.size + nbytes,
            nearest.links + 1 + links,
            number,
            node,
            begin,
            Trail(location, nearest.trail),
        )

    def _roots_of(self, frame: Frame) -> Step | None:
        """Return the beginning of a chain with a derived frame; None if it lacks a root."""
        finder = self._for_roots
        steps = []
        for root in frame.roots:
            node = Node(*root)
            step = self._root(node) if finder is None else finder.root(node)
            if step is None:
                return None
            steps.append(step)
        return Step.onto(tuple(steps)) if steps else None

    def _keep_derived(self, trail: Trail | None, before: Step) -> None:
        while trail is not None:
            frame = trail.location.frame
            before = before.then(trail.location)
            self._derived[Node(frame.chunk, frame.raw_size)] = before
            trail = trail.next
