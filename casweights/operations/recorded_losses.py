"""Losses that `repair` has recorded, for callers that go on in spite of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casweights.database import Database
    from casweights.ids import ChunkId, SnapshotId


class RecordedLosses:
    """What a store is known to have lost. The records are read when something is missing.

    Args:
        db: The store.

    Attributes:
        met: The lost chunks that a caller has asked for.
        has_met: Whether a caller has asked for something that is lost.
        has_gone: Whether that was the manifest of a version.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self.met: set[ChunkId] = set()
        self.has_met = self.has_gone = False
        self._versions: set[SnapshotId] | None = None
        self._gone: set[SnapshotId] = set()
        self._chunks: set[ChunkId] = set()
        self._allowed: set[ChunkId] = set()

    def is_known(self, version: SnapshotId) -> bool:
        """Whether anything of a version is recorded as lost."""
        return self._met(version in self._read())

    def is_gone(self, version: SnapshotId) -> bool:
        """Whether the manifest of a version is recorded as lost."""
        self._read()
        self.has_gone |= version in self._gone
        return self._met(version in self._gone)

    def allow(self, chunks: Iterable[ChunkId]) -> None:
        """Let chunks be missing that are of use only to repair what is lost."""
        self._allowed.update(chunks)

    def is_lost(self, chunk: ChunkId) -> bool:
        """Whether a chunk that is missing is recorded as lost, or may be missing."""
        self._read()
        if not self._met(chunk in self._chunks or chunk in self._allowed):
            return False
        self.met.add(chunk)
        return True

    def _met(self, is_lost: bool) -> bool:
        self.has_met |= is_lost
        return is_lost

    def _read(self) -> set[SnapshotId]:
        """Return the versions of which something is recorded as lost."""
        if self._versions is None:
            losses = self._db.losses
            self._versions = set(losses.names())
            records = [loss for version in self._versions for loss in losses.load(version)]
            self._gone = {loss.snapshot for loss in records if loss.manifest}
            self._chunks = {chunk for loss in records for chunk in loss.chunks}
        return self._versions
