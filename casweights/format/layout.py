"""Positions of chunks: the fixed grid over tensors and files, and runs of neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.format.dtypes import DTYPES, DType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.format.safetensors import Header

BYTES = DTYPES["U8"]


@dataclass(frozen=True, slots=True)
class Piece:
    """The position of one chunk in a file.

    Attributes:
        offset: Offset in the file, in bytes.
        nbytes: Raw bytes of the chunk.
        dtype: Element type of the bytes.
        tensor: Name of the tensor that contains the chunk; None in a file of opaque bytes.
        number: Number of the chunk in that tensor or file, from 0.
    """

    offset: int
    nbytes: int
    dtype: DType
    tensor: str | None = None
    number: int = 0


def grid(
    offset: int, nbytes: int, dtype: DType, chunk_size: int, tensor: str | None = None
) -> Iterator[Piece]:
    """Cut a run of bytes into chunks of `chunk_size` bytes; the last one may be shorter.

    Args:
        offset: Offset of the run in the file.
        nbytes: Bytes of the run.
        dtype: Element type of the bytes.
        chunk_size: Bytes of a chunk.
        tensor: Name of the tensor that the run is; None for opaque bytes.
    """
    for number, start in enumerate(range(0, nbytes, chunk_size)):
        size = min(chunk_size, nbytes - start)
        yield Piece(offset + start, size, dtype, tensor, number)


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
    for tensor in header.tensors:
        yield from grid(data + tensor.start, tensor.nbytes, tensor.dtype, chunk_size, tensor.name)


def count_chunks(size: int, header: Header | None, chunk_size: int) -> int:
    """Return the number of pieces that `file_pieces` yields, without creating them."""
    sizes = [size] if header is None else [tensor.nbytes for tensor in header.tensors]
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
