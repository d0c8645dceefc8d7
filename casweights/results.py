"""What calls return and events carry: small values, without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.config import StoreConfig
    from casweights.errors import CasweightsError
    from casweights.ids import SnapshotId


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreInfo:
    """What a store is.

    Attributes:
        url: How to open it again.
        store_id: Hexadecimal digits that tell it from others; copies have their own.
        config: Digest and chunk size.
        refs: Where branches and tags lie.
        exclusive: Whether of several writers that move a branch at once exactly one can succeed.
            Otherwise that is found out afterwards, see ``docs/format.md``.
        durable: Whether what was written survives a power cut. A file system that cannot sync
            folders does not promise that.
    """

    url: str
    store_id: str
    config: StoreConfig
    refs: str
    exclusive: bool
    durable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStats:
    """One version's share of a store.

    Attributes:
        id: The version.
        nbytes: Its size as plain files.
        new_bytes: Raw bytes of the chunks that no older version of the store has.
        stored_bytes: What those chunks take in the store, encoded.
        read_bytes: What a checkout of all of it reads from packs.
        longest_chain: Frames that the most expensive of its chunks is rebuilt from.
    """

    id: SnapshotId
    nbytes: int
    new_bytes: int
    stored_bytes: int
    read_bytes: int
    longest_chain: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """What a store holds.

    Attributes:
        versions: All snapshots, oldest first.
        packs: Packs.
        pack_bytes: Their bytes.
        snapshot_bytes: Bytes of the snapshots' own objects.
        chunks: Distinct chunks.
        chunk_bytes: Their raw bytes.
        encodings: Frames by the name of their encoding.
    """

    versions: tuple[VersionStats, ...]
    packs: int
    pack_bytes: int
    snapshot_bytes: int
    chunks: int
    chunk_bytes: int
    encodings: dict[str, int]

    @property
    def version_bytes(self) -> int:
        """Bytes that plain copies of all versions would take."""
        return sum(version.nbytes for version in self.versions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What `verify` found.

    Attributes:
        problems: One error for each thing that is wrong; empty if the store is sound.
        snapshots: Snapshots looked at.
        packs: Packs looked at.
        frames: Frames looked at.
        nbytes: Bytes of the packs.
        damaged: Damaged frames and packs. A later commit of their content stores it again.
        noted: Where they are noted for that: the store's URL, or that of this machine's notes if
            the store cannot be written to. None if nothing is damaged, or if there are no notes
            either: then nobody else knows.
    """

    problems: tuple[CasweightsError, ...]
    snapshots: int
    packs: int
    frames: int
    nbytes: int
    damaged: int = 0
    noted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RepackStats:
    """What `repack` did.

    Attributes:
        packs: Packs of the store now.
        old_packs: Packs that it had.
        nbytes: Bytes of the packs now.
        old_bytes: Bytes that they had.
        unreadable: Names of packs whose index cannot be read. They stay: a sound copy may exist
            elsewhere, and a newer casweights may have written them.
    """

    packs: int
    old_packs: int
    nbytes: int
    old_bytes: int
    unreadable: tuple[str, ...] = ()


class ChangeKind(StrEnum):
    """How an item differs."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A tensor, or a file that is not safetensors, that differs.

    Attributes:
        kind: Added, removed or changed.
        file: The file's path.
        tensor: The tensor's name; None for a whole file or a file's header.
        old: What it was, as ``"BF16 [4, 8]"`` or ``"120 bytes"``; None where it was not.
        new: What it is; None where it is no more.
        nbytes: Bytes of the chunks that only the new version has.
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
        old: The version compared from.
        new: The version compared to.
        changes: What differs, in order of file and tensor.
        unchanged: Tensors and files that are the same.
        nbytes: Bytes of the distinct chunks that only the new version has.
    """

    old: SnapshotId
    new: SnapshotId
    changes: tuple[Change, ...]
    unchanged: int
    nbytes: int
