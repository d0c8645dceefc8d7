"""Slices of chunks, of which another chunk is made."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from casweights.format.roots import MAX_ROOTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casweights.database.chain import Chain
    from casweights.format.layout import Piece
    from casweights.format.safetensors import TensorInfo
    from casweights.ids import ChunkId


class ChunkSlice(NamedTuple):
    """Bytes of a chunk, or zeros.

    Attributes:
        chunk: The chunk; None for zeros.
        offset: Offset of the bytes in the chunk; 0 for zeros.
        nbytes: Their number.
    """

    chunk: ChunkId | None
    offset: int
    nbytes: int


class Joined:
    """Slices end to end, as the bytes of a tensor.

    Args:
        slices: The slices.
    """

    def __init__(self, slices: Sequence[ChunkSlice]) -> None:
        self._slices = slices
        self._starts = [0, *accumulate(one.nbytes for one in slices)]

    @property
    def nbytes(self) -> int:
        """Their number of bytes."""
        return self._starts[-1]

    def ends(self) -> Sequence[int]:
        """Return the position at which each slice ends."""
        return self._starts[1:]

    def between(self, start: int, stop: int) -> Iterator[ChunkSlice]:
        """Yield those of its bytes that lie between two positions."""
        for n in range(bisect_right(self._starts, start) - 1, len(self._slices)):
            first, last = max(start, self._starts[n]), min(stop, self._starts[n + 1])
            if first >= last:
                return
            chunk, offset, _ = self._slices[n]
            at = 0 if chunk is None else offset + first - self._starts[n]
            yield ChunkSlice(chunk, at, last - first)

    def chunks(self) -> Iterable[ChunkId]:
        """Return the chunks."""
        return dict.fromkeys(one.chunk for one in self._slices if one.chunk is not None)


NOTHING = Joined(())


class TensorSlices:
    """The chunks of a version, by the tensors whose bytes they contain.

    Args:
        pieces: The path, chunk and place of all chunks of the version, in order.

    Attributes:
        infos: The tensors, by path and name.
        sizes: The raw size of each chunk.
    """

    def __init__(self, pieces: Iterable[tuple[str, ChunkId, Piece]]) -> None:
        self.infos: dict[tuple[str, str], TensorInfo] = {}
        self.sizes: dict[ChunkId, int] = {}
        exact: dict[tuple[str, str], list[ChunkSlice]] = {}
        self._paths: dict[str, list[str]] = {}  # of the files with a tensor of this name
        for path, chunk, piece in pieces:
            self.sizes[chunk] = piece.nbytes
            for part in piece.parts():
                key = path, part.tensor.name
                exact.setdefault(key, []).append(ChunkSlice(chunk, part.offset, part.nbytes))
                if key not in self.infos:
                    self.infos[key] = part.tensor
                    self._paths.setdefault(part.tensor.name, []).append(path)
        self._exact = {key: Joined(slices) for key, slices in exact.items()}

    def of(self, path: str, name: str) -> Joined:
        """Return the bytes of a tensor; none if the version has none of this name in this file."""
        return self._exact.get((path, name), NOTHING)

    def named(self, path: str, name: str) -> Sequence[tuple[str, str]]:
        """Return the paths and names of the tensors of a name: in a file, or else in all others."""
        if (path, name) in self.infos:
            return [(path, name)]
        return [(other, name) for other in self._paths.get(name, ())]

    def count(self, name: str) -> int:
        """Return the number of files with a tensor of this name."""
        return len(self._paths.get(name, ()))

    def rows(self, path: str, tensor: TensorInfo) -> Joined | None:
        """Return the bytes of the tensor of the same name, if its rows are alike."""
        for key in self.named(path, tensor.name)[-1:]:
            info = self.infos[key]
            if info.dtype == tensor.dtype and prod(info.shape[1:]) == prod(tensor.shape[1:]):
                return self._exact[key]
        return None


class Column(NamedTuple):
    """Some bytes of each row of a tensor that are bytes of the same row of another one.

    Attributes:
        start: Where they begin in the row.
        stop: Where they end.
        source: The other tensor.
        width: Bytes of its rows.
        offset: Where they begin in these.
    """

    start: int
    stop: int
    source: Joined
    width: int
    offset: int


class Columns:
    """The bytes of a tensor whose columns are those of others.

    Args:
        width: Bytes of a row.
        columns: The columns, in order, none of which overlap.
    """

    def __init__(self, width: int, columns: Sequence[Column]) -> None:
        self._width = width
        self._columns = columns

    def between(self, start: int, stop: int) -> Iterator[ChunkSlice]:
        """Yield those of its bytes that lie between two positions."""
        at = start
        for row in range(start // self._width, -(-stop // self._width)):
            begin = row * self._width
            for column in self._columns:
                first, last = max(at, begin + column.start), min(stop, begin + column.stop)
                if first < last:
                    if at < first:
                        yield ChunkSlice(None, 0, first - at)
                    there = row * column.width + column.offset + first - begin - column.start
                    yield from column.source.between(there, there + last - first)
                    at = last

    def chunks(self) -> Iterable[ChunkId]:
        """Return the chunks."""
        return dict.fromkeys(chunk for one in self._columns for chunk in one.source.chunks())


class Made(NamedTuple):
    """What a tensor is made from.

    Attributes:
        content: Its bytes.
        sources: The path and name of each tensor that they are of, in order.
    """

    content: Joined | Columns
    sources: Sequence[tuple[str, str]]


def cover(piece: Piece, bytes_of: Callable[[TensorInfo], Joined | Columns]) -> Sequence[ChunkSlice]:
    """Return what may lie at the place of a chunk, in order.

    Args:
        piece: The place.
        bytes_of: Returns what a tensor is like, from its first byte on; zeros follow.

    Returns:
        Slices that cover the chunk, of as many chunks as a frame may have roots; none if there is
        nothing like its tensors.
    """
    found: list[ChunkSlice] = []
    for part in piece.parts():
        covered = 0
        for one in bytes_of(part.tensor).between(part.start, part.start + part.nbytes):
            append(found, one)
            covered += one.nbytes
        if covered < part.nbytes:
            append(found, ChunkSlice(None, 0, part.nbytes - covered))
    return _of_few(found) if any(one.chunk is not None for one in found) else ()


def _of_few(slices: list[ChunkSlice]) -> list[ChunkSlice]:
    """Return slices of the chunks that most bytes are of, and zeros in place of the others."""
    used: dict[ChunkId, int] = {}
    for one in slices:
        if one.chunk is not None:
            used[one.chunk] = used.get(one.chunk, 0) + one.nbytes
    if len(used) <= MAX_ROOTS:
        return slices
    kept = set(sorted(used, key=used.__getitem__, reverse=True)[:MAX_ROOTS])
    few: list[ChunkSlice] = []
    for one in slices:
        append(few, one if one.chunk in kept else ChunkSlice(None, 0, one.nbytes))
    return few


def base_of(
    slices: Sequence[ChunkSlice],
    nbytes: int,
    sizes: Mapping[ChunkId, int],
    *,
    share: float = 1.0,
) -> ChunkId | None:
    """Return the chunk in which slices lie where they are to be.

    Args:
        slices: The slices.
        nbytes: Their bytes, zeros included.
        sizes: The raw sizes of chunks.
        share: The share of the slices, without zeros, that must lie there.
    """
    in_place: dict[ChunkId, int] = {}
    at = total = 0
    for chunk, offset, size in slices:
        if chunk is not None:
            total += size
            if offset == at and sizes.get(chunk) == nbytes:
                in_place[chunk] = in_place.get(chunk, 0) + size
        at += size
    best = max(in_place, key=in_place.__getitem__, default=None)
    return best if best is not None and in_place[best] >= share * total else None


def append(slices: list[ChunkSlice], new: ChunkSlice) -> None:
    """Append a slice, or extend the last one if the new one goes on where it ends."""
    if slices:
        chunk, offset, nbytes = slices[-1]
        if chunk == new.chunk and (chunk is None or offset + nbytes == new.offset):
            slices[-1] = ChunkSlice(chunk, offset, nbytes + new.nbytes)
            return
    slices.append(new)


def in_proportion(
    slices: Sequence[ChunkSlice], chains: Mapping[ChunkId, Chain]
) -> tuple[float, float]:
    """Return the bytes of chains, and of their chunks by themselves, in proportion to their use."""
    read = whole = 0.0
    for chunk, _, nbytes in slices:
        if chunk is not None:
            chain = chains[chunk]
            share = nbytes / chain.frames[-1].frame.raw_size
            read, whole = read + share * chain.nbytes, whole + share * chain.whole_size
    return read, whole
