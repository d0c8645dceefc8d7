"""Count from which versions the frames of a new one are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.format.lineage import Origin, in_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId, SnapshotId
    from casweights.operations.bases import Bases


class Lineage:
    """Counts the bytes of a version that each of the versions has served which it is built on.

    Args:
        bases: The chunks that its frames may be made from.
        parent: Its first parent; None without one.
    """

    def __init__(self, bases: Bases, parent: SnapshotId | None) -> None:
        self._parent = parent
        self._versions = list(bases.versions())
        self._served: dict[SnapshotId, int] = {}

    @property
    def is_implied(self) -> bool:
        """Whether nothing can serve but the first parent, so that there is nothing to count."""
        return all(chunks.version in (None, self._parent) for chunks in self._versions)

    def count(self, chunk: ChunkId, nbytes: int, built_on: Iterable[ChunkId] = ()) -> None:
        """Count a chunk at one of its places.

        Args:
            chunk: The chunk; it counts for a version that also contains it.
            nbytes: Its raw size.
            built_on: The chunks, of one of the versions, that its frames lead to; none if it is
                stored whole or was not stored for this version.
        """
        wanted = [chunk, *built_on]
        for one in wanted:
            for chunks in self._versions:
                if chunks.version is not None and one in chunks.chunks():
                    self._served[chunks.version] = self._served.get(chunks.version, 0) + nbytes
                    return

    def count_all(self, version: Snapshot, built_on: Mapping[ChunkId, Iterable[ChunkId]]) -> None:
        """Count all chunks of a version, with what each new frame of them leads to."""
        if not self.is_implied:
            for file in version.files:
                for chunk, piece in file.pieces(version.config.chunk_size):
                    self.count(chunk, piece.nbytes, built_on.get(chunk, ()))

    def origins(self) -> Sequence[Origin]:
        """Return the versions that have served; none if only the first parent has."""
        if self._served.keys() <= {self._parent}:
            return ()
        return in_order([Origin(version, nbytes) for version, nbytes in self._served.items()])
