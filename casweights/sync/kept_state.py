"""A captured state as a file to encode, and the chunks of the version before it."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from casweights.content.files import SourceFile
from casweights.content.states import STATE_FILE
from casweights.sync.changes import take_back
from casweights.sync.file_grid import refs_of
from casweights.system.buffers import copy, scratch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.format.layout import Piece
    from casweights.format.safetensors import Header
    from casweights.ids import ChunkId
    from casweights.sync.mirror import Mirror, Scan
    from casweights.system.buffers import Pool


class KeptState(SourceFile):
    """The file of a scanned state, read from its mirror.

    It also serves the chunks of the version before, as the bases of the new ones (see
    `TrustedChunks`): it copies the mirror's chunk and undoes the changes in the copy. The mirror
    must not be scanned into while the file or these chunks are read.

    Args:
        mirror: The mirror.
        scan: All changes since the version before, as `Mirror.claim` returns them.
    """

    path = STATE_FILE
    header: Header

    def __init__(self, mirror: Mirror, scan: Scan) -> None:
        self.raw_header, self.header, self.size = scan.raw_header, scan.header, scan.size
        self._mirror = mirror
        self._undo = scan.undo
        self._grid = mirror.grid(scan)
        self._changed = sorted({self._grid.numbers[place] for place in scan.undo})
        files = mirror.version.files if mirror.version else ()
        self._ids = next((file.chunks for file in files if file.path == STATE_FILE), ())
        self._pieces = dict(zip(self._ids, self._grid.pieces, strict=False))

    def pieces(self, chunk_size: int) -> Iterator[Piece]:
        return iter(self._grid.pieces)

    def runs(self, chunk_size: int) -> Iterable[list[Piece]]:
        return self._grid.runs

    def chunk_ids(self, run: Sequence[Piece]) -> list[ChunkId | None]:
        # Chunks that did not change since the version before keep their IDs without being hashed.
        first = self._number(run[0])
        ids: list[ChunkId | None] = list(self._ids[first : first + len(run)])
        begin, end = (bisect_left(self._changed, n) for n in (first, first + len(run)))
        for number in self._changed[begin:end] if ids else ():
            ids[number - first] = None
        return ids or [None] * len(run)

    def base(self, piece: Piece) -> ChunkId | None:
        return self._ids[self._number(piece)] if self._ids else None

    def _number(self, piece: Piece) -> int:
        ref, _ = next(refs_of(piece))
        return self._grid.numbers[ref]

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        return [self._mirror.chunk(piece) for piece in run]

    @property
    def is_used(self) -> bool:
        """Whether any chunk may be available: always."""
        return True

    def __contains__(self, chunk: object) -> bool:
        """Whether this chunk is part of the version before."""
        return chunk in self._pieces

    def get(self, chunk: ChunkId) -> memoryview | None:
        """Return a chunk of the version before, or None if it is not part of it.

        The bytes are valid until the calling thread's next call.
        """
        piece = self._pieces.get(chunk)
        if piece is None:
            return None
        out = scratch(piece.nbytes)
        return out if self.readinto(chunk, out) else None

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """Fill `out` with a chunk of the version before; return False if it is not part of it."""
        piece = self._pieces.get(chunk)
        if piece is None or piece.nbytes != len(out):
            return False
        copy(out, self._mirror.chunk(piece))
        for ref, place in refs_of(piece):
            take_back(out[place], self._undo.get(ref, ()))
        return True
