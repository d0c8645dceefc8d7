"""The pieces of a state's file, computed once and used for many versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.format.layout import file_pieces, runs
from casweights.sync.changes import ChunkRef

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.format.layout import Piece
    from casweights.format.safetensors import Header


class FileGrid:
    """The pieces of a safetensors file.

    Args:
        header: The file's header.
        size: Bytes of the file.
        chunk_size: Bytes of a chunk.

    Attributes:
        pieces: All pieces, in file order.
        runs: The same pieces, grouped as in `SourceFile.runs`.
        numbers: The index in `pieces` for each tensor's chunk; small tensors may share a piece.
    """

    def __init__(self, header: Header, size: int, chunk_size: int) -> None:
        self._tensors, self._size = header.tensors, size
        self.pieces = list(file_pieces(size, header, chunk_size))
        self.runs = list(runs(self.pieces, chunk_size))
        self.numbers = {
            ref: number for number, piece in enumerate(self.pieces) for ref, _ in refs_of(piece)
        }

    def fits(self, header: Header, size: int) -> bool:
        """Whether another file, with this header and size, has the same pieces."""
        # States of one layout share their tensor table, so comparing its identity is enough.
        return header.tensors is self._tensors and size == self._size


def refs_of(piece: Piece) -> Iterator[tuple[ChunkRef[str], slice]]:
    """Yield the chunks of tensors that a piece of a file holds, and their places in it."""
    for tensor, _, offset, nbytes in piece.parts():
        yield ChunkRef(tensor.name, piece.number), slice(offset, offset + nbytes)
