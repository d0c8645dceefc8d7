"""A chain: the frames from which a chunk is rebuilt."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.format.pack import Location
    from casweights.ids import ChunkId


class Cost(NamedTuple):
    """The cost of rebuilding a chunk.

    Attributes:
        nbytes: Stored bytes of the chain's frames.
        links: Number of frames.
    """

    nbytes: int
    links: int


class Node(NamedTuple):
    """A chunk and a raw size that frames claim for it.

    Honest frames of one chunk all claim the same size. In a forged store they may differ, and a
    difference can only be applied to a base of its own size, so the search keeps sizes apart.
    """

    chunk: ChunkId
    raw_size: int


class Step(NamedTuple):
    """The last frame of the cheapest chain to a chunk, linked to the frames before it.

    This is a linked list that grows at its end, so chains with a common beginning share it.
    """

    nbytes: int  # stored bytes of the whole chain
    links: int  # frames of the whole chain
    frame: Location | None  # None for a chunk that the reader has
    first: Location | None  # first frame of the whole chain
    before: Step | None
    roots: tuple[Step, ...] = ()  # the last step to each root of the first frame

    def then(self, frame: Location) -> Step:
        """Return this chain extended by a frame."""
        nbytes, first = self.nbytes + frame.frame.size, self.first or frame
        return Step(nbytes, self.links + 1, frame, first, self, self.roots)

    @classmethod
    def onto(cls, roots: tuple[Step, ...]) -> Step:
        """Return the beginning of a chain whose first frame is derived from chunks."""
        nbytes, links = sum(root.nbytes for root in roots), sum(root.links for root in roots)
        return cls(nbytes, links, None, None, None, roots)


NOTHING = Step(0, 0, None, None, None)


class Chain:
    """The frames that rebuild a chunk: each is decoded onto the chunk that the one before it made.

    Its first frame may be derived. Then it has *roots*, the chains of the chunks that this frame is
    made from, none of which has a derived frame.

    Creating a chain takes constant time; `frames` takes time in proportion to the length.

    Attributes:
        nbytes: Stored bytes of the frames, with those of the roots.
        links: Number of frames, with those of the roots; 0 if the reader has the chunk itself.
    """

    def __init__(self, step: Step) -> None:
        self.nbytes = step.nbytes
        self.links = step.links
        self._step = step

    @property
    def base(self) -> ChunkId | None:
        """The chunk that the first frame is a difference from, which the reader must supply.

        None if the first frame is whole or derived, or if there are no frames.
        """
        first = self._step.first
        return None if first is None else first.frame.base

    @property
    def roots(self) -> tuple[Chain, ...]:
        """The chains of the roots of the first frame, in their order; none if it is not derived."""
        return tuple(map(Chain, self._step.roots))

    @property
    def whole_size(self) -> int:
        """Stored bytes of the chunk by itself, about; 0 without frames.

        They are those of the first frame, or of the first frames of the roots, in proportion: less
        if the chunk is smaller; more if it is larger, up to what the first frame adds.
        """
        first = self._step.first
        if first is None:
            return 0
        if roots := self.roots:
            whole = sum(root.whole_size for root in roots)
            return int(min(self._ratio * whole, min(1.0, self._ratio) * whole + first.frame.size))
        return first.frame.size

    @property
    def read_size(self) -> int:
        """Stored bytes of the frames, and a share of those of the roots.

        The rest of the roots makes the neighbours of the chunk, which are read with it.
        """
        of_roots = sum(root.nbytes for root in self.roots)
        return self.nbytes - of_roots + int(min(1.0, self._ratio) * of_roots)

    @property
    def _ratio(self) -> float:
        """The raw bytes of the chunk, as a share of those of the roots."""
        first = self._step.first
        if first is None or not first.frame.roots:
            return 1.0
        return first.frame.raw_size / sum(root.raw_size for root in first.frame.roots)

    @cached_property
    def frames(self) -> tuple[Location, ...]:
        """The frames in the order of decoding, without those of the roots.

        The first is whole or derived, or the reader has its base.
        """
        return tuple(self.line())[::-1]

    def line(self) -> Iterator[Location]:
        """Yield the frames from the last to the first, without those of the roots."""
        step = self._step
        while step.frame is not None and step.before is not None:
            yield step.frame
            step = step.before

    def lines(self) -> Iterator[Iterator[Location]]:
        """Yield the frames as `line` does, and then those of each root."""
        yield self.line()
        for root in self.roots:
            yield from root.lines()

    def back(self, seen: set[Node] | None = None) -> Iterator[Location]:
        """Yield the frames from the last to the first, and then those of each root.

        Args:
            seen: For callers that walk several chains and need each frame about once: a set that
                they share, and that this method fills. The walk stops after the first frame whose
                chunk is in the set, because an earlier walk has yielded the frames before it.
        """
        for location in self.line():
            yield location
            if seen is not None:
                node = Node(location.frame.chunk, location.frame.raw_size)
                if node in seen:
                    return
                seen.add(node)
        for root in self.roots:
            yield from root.back(seen)
