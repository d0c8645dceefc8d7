"""The pieces of a state's file, computed once and used for many versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.format.layout import file_pieces, runs
from casweights.sync.changes import ChunkRef

if TYPE_CHECKING:
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
        numbers: The index in `pieces` for each chunk.
    """

    def __init__(self, header: Header, size: int, chunk_size: int) -> None:
        self._tensors, self._size = header.tensors, size
        self.pieces = list(file_pieces(size, header, chunk_size))
        self.runs = list(runs(self.pieces, chunk_size))
        self.numbers = {chunk_of(piece): number for number, piece in enumerate(self.pieces)}

    def fits(self, header: Header, size: int) -> bool:
        """Whether another file, with this header and size, has the same pieces."""
        # States of one layout share their tensor table, so comparing its identity is enough.
        return header.tensors is self._tensors and size == self._size


def chunk_of(piece: Piece) -> ChunkRef[str]:
    """Return the tensor's chunk that a piece of a safetensors file holds."""
    return ChunkRef(str(piece.tensor), piece.number)
