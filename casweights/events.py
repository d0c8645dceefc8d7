"""Progress and results leave the core as events; who listens decides what to do with them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.ids import SnapshotId


class Stage(StrEnum):
    """A stretch of work whose progress is counted in bytes of model data."""

    COMMIT = "commit"
    CHECKOUT = "checkout"
    LOAD = "load"
    VERIFY = "verify"
    REPACK = "repack"
    TRANSFER = "transfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStats:
    """What one commit did.

    Attributes:
        snapshot: The new version.
        total_bytes: Size of the version as plain files.
        new_bytes: Bytes of the chunks that were not in the store before.
        stored_bytes: What those chunks take in the store, encoded.
        chunks: Chunks of the version, each counted as often as it occurs.
        new_chunks: Distinct chunks that were added.
        packs: Packs written.
    """

    snapshot: SnapshotId
    total_bytes: int
    new_bytes: int
    stored_bytes: int
    chunks: int
    new_chunks: int
    packs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutStats:
    """What one checkout did.

    Attributes:
        snapshot: The version checked out.
        files: Files of the version that were asked for.
        written_files: Files that were written because they were missing or different.
        deleted_files: Files that were removed because the version does not have them.
        total_bytes: Size of the files asked for.
        fetched_bytes: Stored bytes that were read from packs; what was already in place is not
            among them.
    """

    snapshot: SnapshotId
    files: int
    written_files: int
    deleted_files: int
    total_bytes: int
    fetched_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStats:
    """What went from one store to another.

    Attributes:
        snapshots: Versions that the target did not have.
        packs: Packs that it did not have.
        nbytes: Bytes of these packs, and of the versions' own objects.
        refs: Branches and tags that were moved or made there, as ``heads/main`` or ``tags/v1``,
            and where they point now.
    """

    snapshots: int
    packs: int
    nbytes: int
    refs: dict[str, SnapshotId]


class Reporter:
    """Receives events. The methods do nothing: override those you care for.

    They are called on the thread that called casweights, in order, and should return quickly.
    """

    def started(self, stage: Stage, total: int) -> None:
        """A stage begins that will handle `total` bytes."""

    def advanced(self, stage: Stage, nbytes: int) -> None:
        """A further `nbytes` bytes of the stage are done."""

    def finished(self, stage: Stage) -> None:
        """The stage has ended, with success or not."""

    def committed(self, stats: CommitStats) -> None:
        """A version has become visible."""

    def checked_out(self, stats: CheckoutStats) -> None:
        """A version is in place."""

    def transferred(self, stats: TransferStats) -> None:
        """Versions have come to another store, and branches and tags were moved there."""
