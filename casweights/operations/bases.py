"""The chunks that those of a new version may be stored as differences from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.operations.differences import BaseChunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casweights.format.layout import Piece
    from casweights.ids import ChunkId


class Counterpart(NamedTuple):
    """A tensor of another version that one of the new version is like.

    Attributes:
        chunks: The other version.
        file: Path of the tensor's file there.
        name: Name of the tensor; None for a file of opaque bytes.
    """

    chunks: BaseChunks
    file: str
    name: str | None


class Bases:
    """Finds a base for each chunk of a new version.

    Args:
        first: The parent, or the nearest relative; no chunks without either.
        others: Tensors of the new version, by file and name, that have their like elsewhere.
    """

    def __init__(
        self,
        first: BaseChunks | None = None,
        others: Mapping[tuple[str, str | None], Counterpart] | None = None,
    ) -> None:
        self.first = first or BaseChunks()
        self._others = others or {}

    def find(self, path: str, piece: Piece) -> ChunkId | None:
        """Return the chunk from which the one at this place may be a difference, if any."""
        found = None
        if (other := self._others.get((path, piece.name))) is not None:
            found = other.chunks.at(other.file, other.name, piece)
        return found or self.first.find(path, piece)

    def has_place(self, path: str, piece: Piece) -> bool:
        """Return whether one of the versions has this tensor or, for other bytes, this file."""
        return (path, piece.name) in self._others or self.first.has_place(path, piece)

    def find_structure(self, path: str, place: tuple[str, int]) -> ChunkId | None:
        """Return the structure chunk of a file at one of its `structure_places`."""
        return self.first.find_structure(path, place)

    def foreign(self) -> Iterator[ChunkId]:
        """Yield all chunks of relatives that may be bases."""
        for other in self._others.values():
            yield from other.chunks.of_tensor(other.file, other.name)
