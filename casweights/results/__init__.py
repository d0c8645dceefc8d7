"""The results of calls and the values of events. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from casweights.results.collections import (
    CollectedObject,
    CollectStats,
    FoldStats,
    PendingCollection,
    SpaceUse,
    UndeleteStats,
)
from casweights.results.lineage import BaseVersion
from casweights.results.similar import SimilarTensor, SimilarVersion
from casweights.results.stores import (
    ExpiredVersion,
    Expiry,
    LostVersion,
    MaintainStats,
    RepackStats,
    RepairReport,
    StoreInfo,
    StoreStats,
    Verdict,
    Verification,
    VersionStats,
)

if TYPE_CHECKING:
    from casweights.ids import SnapshotId

__all__ = [
    "BaseVersion",
    "Change",
    "ChangeKind",
    "CheckoutStats",
    "CollectStats",
    "CollectedObject",
    "CommitStats",
    "Diff",
    "ExpiredVersion",
    "Expiry",
    "FoldStats",
    "LostVersion",
    "MaintainStats",
    "PendingCollection",
    "PollStats",
    "PublishStats",
    "RepackStats",
    "RepairReport",
    "SimilarTensor",
    "SimilarVersion",
    "SpaceUse",
    "StoreInfo",
    "StoreStats",
    "SyncStats",
    "TransferStats",
    "UndeleteStats",
    "Verdict",
    "Verification",
    "VersionStats",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitStats:
    """The result of a commit.

    Attributes:
        snapshot: ID of the new version.
        total_bytes: Size of the version as plain files, in bytes.
        new_bytes: Bytes, before encoding, of the chunks that the store did not have.
        stored_bytes: Bytes that these chunks occupy in the store, encoded.
        chunks: Number of chunks of the version; a chunk counts as often as it occurs.
        new_chunks: Number of distinct chunks that the store did not have.
        packs: Number of packs written.
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
    """The result of a checkout.

    Attributes:
        snapshot: ID of the version.
        files: Number of files of the version, or of the selection of it.
        written_files: Number of files that were missing or different, and were written.
        deleted_files: Number of files that are not part of the version, and were deleted.
        total_bytes: Size of the files of the version or the selection, in bytes.
        fetched_bytes: Stored bytes of frames read from packs; content that was in place is not
            read. A directory also reads around small frames.
    """

    snapshot: SnapshotId
    files: int
    written_files: int
    deleted_files: int
    total_bytes: int
    fetched_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStats:
    """The result of a push or pull.

    Attributes:
        snapshots: Number of versions that the target did not have.
        packs: Number of packs that the target did not have.
        nbytes: Bytes of these packs, and of the snapshot objects of these versions.
        refs: Versions of the branches and tags that were made or moved in the target, by
            ``heads/main`` or ``tags/v1``.
        tips: Versions that were requested, by ``heads/main``, ``tags/v1``, or the ID or other ref
            as given.
        expired: Number of versions that were copied and that the target had let expire: `log`
            leaves them out, and a collection may set them aside a grace time later.
    """

    snapshots: int
    packs: int
    nbytes: int
    refs: dict[str, SnapshotId]
    tips: dict[str, SnapshotId] = field(default_factory=dict)
    expired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishStats:
    """The cost of publishing a version of live tensors. Times are elapsed seconds.

    Attributes:
        snapshot: ID of the new version.
        step: The caller's number of the step; None if it gave none.
        skipped: Numbers of the steps since the previous version that were skipped in favour of
            this one.
        total_bytes: Size of the version as plain files, in bytes.
        stored_bytes: Bytes stored for the version, encoded.
        elements: Number of elements of the tensors.
        changed_elements: Number of elements that differ from the previous version; None if they
            were not counted.
        scan_seconds: Seconds to find the changes, while the caller waited.
        encode_seconds: Seconds to hash and encode, in the background.
        upload_seconds: Seconds to make the version durable and visible, in the background.
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
    """The result of one look at a branch.

    Attributes:
        snapshot: ID of the head of the branch; None if the branch does not exist.
        seconds: Elapsed seconds of the look.
    """

    snapshot: SnapshotId | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStats:
    """The cost of bringing live tensors to a version.

    Attributes:
        snapshot: ID of the version that the tensors hold now.
        previous: ID of the version that they held before; None if it is unknown.
        lag: Number of moves of the branch from the previous version to this one; 0 if unknown.
        total_bytes: Size of the tensors, in bytes.
        fetched_bytes: Stored bytes of the frames that were read. A directory also reads around
            small ones.
        elements: Number of elements of the tensors.
        changed_elements: Number of elements that were written.
        download_seconds: Seconds to read stored bytes, summed over threads.
        decode_seconds: Seconds to decode and to find changes, summed over threads.
        verify_seconds: Seconds to hash decoded chunks, summed over threads.
        apply_seconds: Elapsed seconds from the first to the last write into a tensor: the pause.
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


class ChangeKind(StrEnum):
    """The kinds of differences between two versions.

    A tensor is *moved* if it has the same name in another file, and *renamed* if it has another
    name; a file is moved if it lies in another folder. A tensor or file that is new, but comes from
    one that is still there, is *copied*. A tensor is *fused* if it has the rows or columns of
    several, and *split* if it has a part of those of one. All of these may have changed as well.
    """

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    MOVED = "moved"
    RENAMED = "renamed"
    COPIED = "copied"
    FUSED = "fused"
    SPLIT = "split"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The difference of one tensor, or of one file that is not safetensors.

    Attributes:
        kind: The kind of difference.
        file: Path of the file.
        tensor: Name of the tensor; None for a whole file, or for the metadata of a safetensors
            file.
        old: Type and shape or size in the old version, as ``"BF16 [4, 8]"`` or ``"120 bytes"``;
            None if the old version does not have it, or if it is fused from several.
        new: The same in the new version; None if the new version does not have it.
        nbytes: Bytes of it that lie in chunks that only the new version has.
        old_file: Path of the file in the old version, if it was moved, renamed, copied or split.
        old_tensor: Name of the tensor in the old version, if it was moved, renamed, copied or
            split.
        has_same_content: Whether both versions have the same bytes, whatever they call them.
        sources: Path and name of each tensor that it was fused from, in the order of its rows or
            columns.
    """

    kind: ChangeKind
    file: str
    tensor: str | None
    old: str | None
    new: str | None
    nbytes: int
    old_file: str | None = None
    old_tensor: str | None = None
    has_same_content: bool = False
    sources: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """The difference between two versions.

    Attributes:
        old: ID of the old version.
        new: ID of the new version.
        changes: All differences, in order of file and tensor.
        unchanged: Number of tensors and files that are the same.
        nbytes: Bytes of the distinct chunks that only the new version has.
    """

    old: SnapshotId
    new: SnapshotId
    changes: tuple[Change, ...]
    unchanged: int
    nbytes: int
