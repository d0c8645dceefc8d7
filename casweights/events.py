"""Progress and results leave the core as events; who listens decides what to do with them."""

from __future__ import annotations

from dataclasses import dataclass, field
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
        tips: The versions that were asked for, by ``heads/main``, ``tags/v1`` or the ID or other
            ref as it was given.
    """

    snapshots: int
    packs: int
    nbytes: int
    refs: dict[str, SnapshotId]
    tips: dict[str, SnapshotId] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishStats:
    """What it took to publish a version of live tensors. Seconds are those of the clock.

    Attributes:
        snapshot: The new version.
        step: The caller's number for it.
        skipped: Numbers of the steps that were published since the version before, and left out
            in favour of this one.
        total_bytes: Size of the version as plain files.
        stored_bytes: What was stored for it, encoded.
        elements: Elements of its tensors.
        changed_elements: Those that are not what they were in the version before; None where that
            was not counted.
        scan_seconds: Finding them, while the caller waited.
        encode_seconds: Hashing and encoding, in the background.
        upload_seconds: Making it durable and visible, in the background.
    """

    snapshot: SnapshotId
    step: int | None
    skipped: tuple[int | None, ...]
    total_bytes: int
    stored_bytes: int
    elements: int
    changed_elements: int | None
    scan_seconds: float
    encode_seconds: float
    upload_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PollStats:
    """A look at a branch.

    Attributes:
        snapshot: Where it is; None if there is no such branch.
        seconds: What the look took.
    """

    snapshot: SnapshotId | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStats:
    """What it took to bring live tensors to a version.

    Attributes:
        snapshot: The version that they hold now.
        previous: The one that they held before; None if that is not known.
        lag: How many moves of the branch lie between the two; 0 if that is not known.
        total_bytes: Bytes of the tensors.
        fetched_bytes: Stored bytes that were read for it.
        elements: Elements of the tensors.
        changed_elements: Those that were written.
        download_seconds: Reading stored bytes, summed over threads.
        decode_seconds: Decoding them and finding what changes, summed over threads.
        verify_seconds: Hashing what was decoded, summed over threads.
        apply_seconds: By the clock, from the first write into a tensor to the last: the pause.
    """

    snapshot: SnapshotId
    previous: SnapshotId | None
    lag: int
    total_bytes: int
    fetched_bytes: int
    elements: int
    changed_elements: int
    download_seconds: float
    decode_seconds: float
    verify_seconds: float
    apply_seconds: float


class Reporter:
    """Receives events. The methods do nothing: override those you care for.

    They are called in order, on the thread that called casweights (of a `Publisher`, on the one
    that works for it), and should return quickly.
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

    def warned(self, code: str, message: str) -> None:
        """Something succeeds, and its result will not do what people expect of it.

        Args:
            code: The `ErrorCode` of the error that it will lead to.
            message: What is wrong, and what to do.
        """

    def published(self, stats: PublishStats) -> None:
        """A version of live tensors has become visible."""

    def polled(self, stats: PollStats) -> None:
        """A follower has looked where its branch is."""

    def synced(self, stats: SyncStats) -> None:
        """Live tensors have been brought to a version."""
