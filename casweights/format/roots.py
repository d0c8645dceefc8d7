"""The roots of derived frames: the chunks that such a frame is made from."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import MAX_CHUNK_SIZE
from casweights.format.columns import NumberColumn
from casweights.ids import ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.format.columns import IdColumn

MAX_ROOTS = 8


class Root(NamedTuple):
    """One of the chunks that a derived frame is made from.

    Attributes:
        chunk: ID of the chunk.
        raw_size: Number of its raw bytes.
    """

    chunk: ChunkId
    raw_size: int


def all_bases(base: ChunkId | None, roots: Sequence[Root]) -> tuple[ChunkId, ...]:
    """Return all chunks that a frame builds on: its base, or its roots."""
    if base is not None:
        return (base,)
    return tuple(root.chunk for root in roots) if roots else ()


class RootColumns:
    """The roots of an index's derived frames, as columns with a row for each root.

    Args:
        frames: For each root, the number of its frame.
        chunks: Their IDs.
        sizes: Their raw sizes.
        count: Number of frames of the index.

    Raises:
        ValueError: The columns do not fit each other.

    Attributes:
        chunks: The ID of each root.
    """

    def __init__(
        self, frames: NumberColumn, chunks: IdColumn, sizes: NumberColumn, count: int
    ) -> None:
        self._frames, self._sizes, self.chunks = frames.numbers, sizes.numbers, chunks
        if not len(self._frames) == len(chunks) == len(self._sizes):
            raise ValueError("its columns of roots differ in length")
        is_sorted = all(one <= other for one, other in pairwise(self._frames))
        if not is_sorted or max(self._frames, default=-1) >= count:
            raise ValueError("it has roots of frames that do not exist, or in another order")
        if any(map(int.__eq__, self._frames, self._frames[MAX_ROOTS:])):
            raise ValueError(f"it has a frame with more than {MAX_ROOTS} roots")
        if not all(0 < size <= MAX_CHUNK_SIZE for size in self._sizes):
            raise ValueError("it has a root without bytes, or above the largest chunk size")

    def of(self, frame: int) -> tuple[Root, ...]:
        """Return the roots of a frame, in order; none if it is not derived."""
        found = range(bisect_left(self._frames, frame), bisect_right(self._frames, frame))
        return tuple(Root(ChunkId(self.chunks.at(n)), self._sizes[n]) for n in found)

    def frames(self) -> Iterator[int]:
        """Return the numbers of the derived frames."""
        return iter(dict.fromkeys(self._frames))


def encode_roots(roots: Iterable[Sequence[Root]]) -> dict[str, bytes]:
    """Return the columns of the roots of an index's frames; no column if no frame is derived."""
    rows = [(number, root) for number, own in enumerate(roots) for root in own]
    if not rows:
        return {}
    return {
        "root_of": NumberColumn.encode(number for number, _ in rows),
        "root": b"".join(root.chunk for _, root in rows),
        "root_size": NumberColumn.encode(root.raw_size for _, root in rows),
    }
