"""Bytes of live tensors, and the chunks of a store that they are parts of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.content.spans import Span
from casweights.ids import ChunkId
from casweights.sync.changes import ChunkRef
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casweights.sync.live import LiveTensor

_NO_CHUNK = ChunkId(bytes(32))  # in place of an ID that is not computed yet


class LiveSpan(NamedTuple):
    """A chunk of a live tensor, and the bytes of a stored chunk that it has or will have.

    Attributes:
        chunk: The live tensor's chunk.
        span: The bytes: a whole chunk, or those of a small tensor in a chunk that it shares.
    """

    chunk: ChunkRef[LiveTensor]
    span: Span

    @property
    def is_held(self) -> bool:
        """Whether the live tensor is known to have these bytes."""
        live, number = self.chunk
        return live.holds[number] == self.span

    @property
    def is_unknown(self) -> bool:
        """Whether the bytes of the live tensor are not known."""
        live, number = self.chunk
        return live.holds[number] is None

    def hold(self, span: Span | None) -> None:
        """Record that the live tensor has the bytes of a span, or unknown ones."""
        live, number = self.chunk
        live.holds[number] = span

    def cut(self, whole: memoryview) -> memoryview:
        """Return the bytes of the span, given those of the whole stored chunk."""
        return whole[self.span.offset : self.span.offset + self.span.nbytes]

    def readinto(self, whole: memoryview) -> None:
        """Copy the live tensor's bytes to their place in the stored chunk."""
        live, number = self.chunk
        live.readinto(number, self.cut(whole))


def own_spans(live: LiveTensor) -> Iterator[LiveSpan]:
    """Yield a live tensor's chunks, each as a whole chunk whose ID is not computed yet."""
    for number in range(len(live.holds)):
        size = live.size_of(number)
        yield LiveSpan(ChunkRef(live, number), Span(_NO_CHUNK, size, 0, size))


def covering(spans: Iterable[LiveSpan]) -> list[LiveSpan]:
    """Return those of some spans of one chunk that make the whole chunk, in order.

    Returns:
        An empty list if some bytes of the chunk are in none of the spans.
    """
    found: list[LiveSpan] = []
    end = size = 0
    for one in sorted(spans, key=lambda one: one.span.offset):
        size = one.span.size
        if one.span.offset == end:
            found.append(one)
            end += one.span.nbytes
    return found if end == size else []


def held_chunks(tensors: Iterable[LiveTensor]) -> dict[ChunkId, list[LiveSpan]]:
    """Return the stored chunks that live tensors hold completely, each with the spans that do."""
    found: dict[ChunkId, list[LiveSpan]] = {}
    shared: dict[ChunkId, list[LiveSpan]] = {}
    for live in tensors:
        for number, span in enumerate(live.holds):
            if span is not None:
                one = LiveSpan(ChunkRef(live, number), span)
                if span.nbytes == span.size:
                    found[span.chunk] = [one]
                else:
                    shared.setdefault(span.chunk, []).append(one)
    for chunk, spans in shared.items():
        if whole := covering(spans):
            found[chunk] = whole
    return found


def fetched_together(wanted: Iterable[LiveSpan]) -> list[list[LiveSpan]]:
    """Group spans so that a chunk that small tensors share is fetched once for all of them.

    A group has at most the bytes of its chunk, since it is decoded and written as a whole.
    """
    groups: list[list[LiveSpan]] = []
    open_groups: dict[ChunkId, tuple[list[LiveSpan], int]] = {}
    for one in wanted:
        chunk, size, _, nbytes = one.span
        group, left = open_groups.get(chunk, ([], 0))
        if nbytes > left:
            group, left = [], size
            groups.append(group)
        group.append(one)
        open_groups[chunk] = group, left - nbytes
    return groups


def content(spans: Sequence[LiveSpan]) -> memoryview:
    """Return the bytes of a chunk that these spans cover, without a copy if there is one span."""
    if len(spans) == 1:
        live, number = spans[0].chunk
        return live.chunk(number)
    whole = uninitialized(spans[0].span.size)
    for one in spans:
        one.readinto(whole)
    return whole


class LiveChunks:
    """The chunks of a target, as `LocalChunks` for a reader.

    Args:
        chunks: The spans that cover each chunk.
    """

    def __init__(self, chunks: Mapping[ChunkId, Sequence[LiveSpan]]) -> None:
        self._chunks = chunks

    @property
    def is_used(self) -> bool:
        """Whether there are any chunks."""
        return bool(self._chunks)

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._chunks

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with a chunk; return False if the target does not hold it, or no longer."""
        found = self._chunks.get(chunk)
        if found is None or found[0].span.size != len(out):
            return False
        for one in found:
            one.readinto(out)
        return all(one.is_held for one in found)  # another thread may have written
