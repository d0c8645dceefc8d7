"""The results of calls and the values of events. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from casweights.config import Keep, StoreConfig
    from casweights.errors import CasweightsError
    from casweights.ids import SnapshotId


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
        fetched_bytes: Stored bytes read from packs; content that was in place is not read.
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
    """

    snapshots: int
    packs: int
    nbytes: int
    refs: dict[str, SnapshotId]
    tips: dict[str, SnapshotId] = field(default_factory=dict)


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
        fetched_bytes: Stored bytes that were read.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """The identity, the settings and the guarantees of a store.

    Attributes:
        url: URL or path that opens the store again.
        store_id: 32 hexadecimal digits that identify the store; a copy has another ID.
        config: Settings that are fixed since the store was made.
        refs: URL of the place of branches and tags: the store itself, or a repository.
        exclusive: Whether exactly one of several writers that move a branch at once succeeds.
            Otherwise the others learn right afterwards that their versions were displaced.
        durable: Whether a committed version survives a power cut. Some file systems cannot sync
            folders, and may lose the latest versions.
    """

    url: str
    store_id: str
    config: StoreConfig
    refs: str
    exclusive: bool
    durable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStats:
    """The share of one version in a store.

    Attributes:
        id: ID of the version.
        nbytes: Size of the version as plain files, in bytes.
        new_bytes: Bytes, before encoding, of the chunks that no older version has.
        stored_bytes: Bytes that these chunks occupy in the store, encoded.
        read_bytes: Stored bytes that a checkout into an empty directory reads from packs.
        longest_chain: Largest number of frames that one of its chunks is rebuilt from.
    """

    id: SnapshotId
    nbytes: int
    new_bytes: int
    stored_bytes: int
    read_bytes: int
    longest_chain: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """The contents of a store.

    Attributes:
        versions: The share of each version, oldest first.
        packs: Number of packs, those that snapshot objects carry included.
        pack_bytes: Size of the packs in bytes: of the carried ones, the frames alone.
        snapshot_bytes: Size of the snapshot objects and archives in bytes, without the frames that
            the objects carry.
        segments: Number of segments.
        segment_bytes: Size of the segments, in bytes.
        segment_rewrites: How often a row of a segment was written again, for the row with the most.
        pack_rewrites: The same for the frames of packs.
        chunks: Number of distinct chunks.
        chunk_bytes: Bytes of the distinct chunks, before encoding.
        encodings: Number of frames, by the name of their encoding.
        archives: Number of archives, which hold old versions.
    """

    versions: tuple[VersionStats, ...]
    packs: int
    pack_bytes: int
    snapshot_bytes: int
    segments: int
    segment_bytes: int
    segment_rewrites: int
    pack_rewrites: int
    chunks: int
    chunk_bytes: int
    encodings: dict[str, int]
    archives: int = 0

    @property
    def version_bytes(self) -> int:
        """Bytes that plain copies of all versions would occupy."""
        return sum(version.nbytes for version in self.versions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of `verify`.

    Attributes:
        problems: One error per problem; empty if the store is sound.
        snapshots: Number of versions checked.
        packs: Number of packs checked, those that snapshot objects carry included.
        frames: Number of frames checked.
        nbytes: Size of the packs and snapshot objects checked, in bytes.
        archives: Number of archives checked.
        damaged: Number of damaged frames and packs. A later commit of their content stores it
            again.
        noted: URL of the place that records the damage for later commits: the store, or the notes
            on this machine if the store is read-only. None if there is no damage, or if it could
            not be recorded.
    """

    problems: tuple[CasweightsError, ...]
    snapshots: int
    packs: int
    frames: int
    nbytes: int
    archives: int = 0
    damaged: int = 0
    noted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepackStats:
    """The result of `repack`.

    Attributes:
        packs: Number of packs after it.
        old_packs: Number of packs before it.
        nbytes: Size of the packs after it, in bytes.
        old_bytes: Size of the packs before it, in bytes.
        unreadable: Names of packs whose index cannot be read. They are not deleted: a newer
            casweights may have written them, or a sound copy may exist elsewhere.
    """

    packs: int
    old_packs: int
    nbytes: int
    old_bytes: int
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintainStats:
    """The result of `maintain`.

    Attributes:
        packs: Number of packs after it.
        old_packs: Number of packs before it.
        copied_bytes: Number of stored bytes that it copied into larger packs and archives.
        archived: Number of versions that it moved into archives.
        archives: Number of archives after it.
        segments: Number of segments after it.
        segment_bytes: Size of the segments that it wrote, in bytes.
        may_delete: Whether the store let it delete what it replaced. If not, old moves, packs and
            versions stay as they are.
        expired: Number of versions that it recorded as expired, by the policy of the store.
    """

    packs: int
    old_packs: int
    copied_bytes: int
    archived: int
    archives: int
    segments: int
    segment_bytes: int
    may_delete: bool
    expired: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiredVersion:
    """A version that a policy let go, as it is recorded in the store.

    Attributes:
        id: ID of the version.
        number: Its number.
        parents: The versions that it was made from.
        time: When it expired, in UTC.
        policy: The rules that did not keep it, for people.
    """

    id: SnapshotId
    number: int
    parents: tuple[SnapshotId, ...]
    time: datetime
    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a policy decides about one version.

    Attributes:
        id: ID of the version.
        number: Its number.
        parents: The versions that it was made from.
        time: Time of the version.
        branches: The branches with a policy that have it in their history.
        reasons: Why it stays; empty if it goes.
        policy: The rules that do not keep it; empty if it stays.
    """

    id: SnapshotId
    number: int
    parents: tuple[SnapshotId, ...]
    time: datetime
    branches: tuple[str, ...]
    reasons: tuple[str, ...]
    policy: str = ""

    @property
    def stays(self) -> bool:
        """Whether the version stays."""
        return bool(self.reasons)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """The result of `expire`.

    Attributes:
        verdicts: Each version of the branches that the policy is for, except for those that expired
            before: branch by branch, newest first.
        policy: The policy.
        applied: Whether the store now records the versions that go; False for a dry run.
    """

    verdicts: tuple[Verdict, ...]
    policy: tuple[Keep, ...]
    applied: bool

    @property
    def stay(self) -> int:
        """Number of versions that stay."""
        return sum(verdict.stays for verdict in self.verdicts)

    @property
    def go(self) -> int:
        """Number of versions that go."""
        return len(self.verdicts) - self.stay


class ChangeKind(StrEnum):
    """The kinds of differences between two versions."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The difference of one tensor, or of one file that is not safetensors.

    Attributes:
        kind: The kind of difference.
        file: Path of the file.
        tensor: Name of the tensor; None for a whole file, or for the metadata of a safetensors
            file.
        old: Type and shape or size in the old version, as ``"BF16 [4, 8]"`` or ``"120 bytes"``;
            None if the old version does not have it.
        new: The same in the new version; None if the new version does not have it.
        nbytes: Bytes of it that lie in chunks that only the new version has.
    """

    kind: ChangeKind
    file: str
    tensor: str | None
    old: str | None
    new: str | None
    nbytes: int


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
