"""Positions of chunks: the fixed grid over tensors and files, and runs of neighbours.

A large tensor has chunks of its own. Small tensors share one with their neighbours: together they
are a *bundle*.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from casweights.format.dtypes import DTYPES, DType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.format.safetensors import Header, TensorInfo

BYTES = DTYPES["U8"]
# Shares of a chunk. An ID, a checksum and a coder's start cost 100 bytes, at each step of training.
_SMALL = 1 / 2  # tensors below it share a chunk, since two of them fit
_FULL = 1 / 8  # a bundle of this size ends where its last block does
_MEAN_BUNDLE = 64  # blocks; a new tensor changes the bundle it is in, and rarely another

# A name to the end of its last part that is a number; names may contain line breaks.
_NUMBERED = re.compile(r".*(?<![^.])([0-9]+)(?![^.])", re.DOTALL)


class Bundle(NamedTuple):
    """Tensors that are cut together: one of any size, or small neighbours of one dtype.

    Attributes:
        tensors: The tensors, in file order.
        nbytes: Their bytes.
    """

    tensors: tuple[TensorInfo, ...]
    nbytes: int


class Part(NamedTuple):
    """Bytes of a tensor within a chunk.

    Attributes:
        tensor: The tensor.
        start: Offset of the bytes in the tensor.
        offset: Offset of the bytes in the chunk.
        nbytes: Their number.
    """

    tensor: TensorInfo
    start: int
    offset: int
    nbytes: int


class Extent(NamedTuple):
    """What a chunk has of a tensor.

    Attributes:
        nbytes: Its bytes.
        columns: Elements of a row of the tensor; 0 if it is no matrix.
        start: Position in the tensor of the first element.
    """

    nbytes: int
    columns: int = 0
    start: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """The position of one chunk in a file.

    Attributes:
        offset: Offset in the file, in bytes.
        nbytes: Raw bytes of the chunk.
        dtype: Element type of the bytes.
        number: Number of the chunk in its tensor or file, from 0.
        start: Offset of the chunk in its tensor or file, in bytes.
        tensors: The tensor that contains the chunk, or the small tensors that the chunk contains;
            empty in a file of opaque bytes.
    """

    offset: int
    nbytes: int
    dtype: DType
    number: int = 0
    start: int = 0
    tensors: tuple[TensorInfo, ...] = field(default=(), compare=False, repr=False)

    @property
    def extents(self) -> list[Extent]:
        """What the chunk has of each tensor, in order; nothing for opaque bytes."""
        return [
            Extent(
                part.nbytes,
                part.tensor.shape[-1] if len(part.tensor.shape) > 1 else 0,
                8 * part.start // part.tensor.dtype.bits,
            )
            for part in self.parts()
        ]

    @property
    def name(self) -> str | None:
        """Name of the first tensor; None in a file of opaque bytes."""
        return self.tensors[0].name if self.tensors else None

    def parts(self) -> Iterator[Part]:
        """Yield the bytes of each tensor in the chunk, in order; nothing for opaque bytes."""
        if len(self.tensors) == 1:
            yield Part(self.tensors[0], self.start, 0, self.nbytes)
            return
        for tensor in self.tensors:
            yield Part(tensor, 0, tensor.start - self.tensors[0].start, tensor.nbytes)


def is_small(tensor: TensorInfo, chunk_size: int) -> bool:
    """Whether a tensor may share a chunk with its neighbours."""
    return tensor.nbytes < _SMALL * chunk_size


def bundles(tensors: Iterable[TensorInfo], chunk_size: int) -> Iterator[Bundle]:
    """Divide a file's tensors into those that are cut together; the empty ones are in none.

    Args:
        tensors: The tensors, in file order.
        chunk_size: Bytes of a chunk. A bundle of several tensors never has more.
    """
    small, full, numbered = _SMALL * chunk_size, _FULL * chunk_size, _NUMBERED.match
    held: list[TensorInfo] = []
    nbytes, code, block = 0, "", ""
    for tensor in tensors:
        if not (size := tensor.nbytes):
            continue
        last, ended = code, block
        code = tensor.dtype.code if size < small else ""  # without a code, nothing joins it
        block = mark = tensor.name
        if code and (found := numbered(block)):  # the parts before the number are often renamed
            block, mark = found[0], found[1]
        joins = code and code == last and nbytes + size <= chunk_size
        if not joins or (block != ended and (nbytes >= full or _divides(mark))):
            if held:
                yield Bundle(tuple(held), nbytes)
            held, nbytes = [], 0
        held.append(tensor)
        nbytes += size
    if held:
        yield Bundle(tuple(held), nbytes)


def _divides(mark: str) -> bool:
    """Whether a bundle ends before a block with this mark, wherever the bundle began.

    Without this, a new tensor would move the ends of all bundles behind it.
    """
    return xxhash.xxh3_64_intdigest(mark.encode()) % _MEAN_BUNDLE == 0


def grid(
    offset: int, nbytes: int, dtype: DType, chunk_size: int, tensors: tuple[TensorInfo, ...] = ()
) -> Iterator[Piece]:
    """Cut consecutive bytes into chunks of `chunk_size` bytes; the last one may be shorter.

    Args:
        offset: Offset of the bytes in the file.
        nbytes: Their number.
        dtype: Their element type.
        chunk_size: Bytes of a chunk.
        tensors: The tensors that the bytes are; empty for opaque bytes.
    """
    for number, start in enumerate(range(0, nbytes, chunk_size)):
        size = min(chunk_size, nbytes - start)
        yield Piece(offset + start, size, dtype, number, start, tensors)


def file_pieces(size: int, header: Header | None, chunk_size: int) -> Iterator[Piece]:
    """Yield the pieces of a file, in file order.

    Args:
        size: Size of the file in bytes.
        header: The file's safetensors header; None for a file of opaque bytes.
        chunk_size: Bytes of a chunk.
    """
    if header is None:
        yield from grid(0, size, BYTES, chunk_size)
        return
    data = size - header.data_size
    for tensors, nbytes in bundles(header.tensors, chunk_size):
        first = tensors[0]
        yield from grid(data + first.start, nbytes, first.dtype, chunk_size, tensors)


def count_chunks(size: int, header: Header | None, chunk_size: int) -> int:
    """Return the number of pieces that `file_pieces` yields, without creating them."""
    sizes = [size]
    if header is not None:
        sizes = [bundle.nbytes for bundle in bundles(header.tensors, chunk_size)]
    return sum(-(-nbytes // chunk_size) for nbytes in sizes)


def runs(pieces: Iterable[Piece], limit: int) -> Iterator[list[Piece]]:
    """Group adjacent pieces into runs of at most `limit` bytes; a larger piece is its own run."""
    run: list[Piece] = []
    nbytes = 0
    for piece in pieces:
        adjacent = run and run[-1].offset + run[-1].nbytes == piece.offset
        if run and (not adjacent or nbytes + piece.nbytes > limit):
            yield run
            run, nbytes = [], 0
        run.append(piece)
        nbytes += piece.nbytes
    if run:
        yield run
