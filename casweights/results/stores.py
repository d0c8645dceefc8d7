"""The results of calls that look after a store as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from casweights.config import Keep, StoreConfig
    from casweights.errors import CasweightsError
    from casweights.ids import SnapshotId


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
        checked: Number of frames whose bytes were checked: all, unless a part was asked for.
        lost: Number of versions that are recorded as lost in part. What they lack is among the
            problems, too.
    """

    problems: tuple[CasweightsError, ...]
    snapshots: int
    packs: int
    frames: int
    nbytes: int
    archives: int = 0
    damaged: int = 0
    noted: str | None = None
    checked: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LostVersion:
    """A version that a store has lost in part.

    Attributes:
        snapshot: ID of the version.
        number: Its number; None if its manifest is lost, and all of it with it.
        message: Its message; empty if its manifest is lost.
        chunks: Number of its distinct chunks that are lost. If some of them are headers or lists of
            chunks, others may be lost that only these name.
    """

    snapshot: SnapshotId
    number: int | None
    message: str
    chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairReport:
    """The result of `repair`.

    Attributes:
        applied: Whether the repair was made; False if this only says what it would do.
        damaged: Number of damaged frames and packs that were found.
        missing: Number of chunks that the store could not rebuild.
        rebuilt: Number of these that were rebuilt, by where they came from: the ``from`` argument,
            ``"this machine"`` for its caches, or ``"the store"`` for chunks whose differences can
            be read again, because that which they build on was rebuilt.
        restored: Versions whose manifest was damaged or missing, and was brought from a source.
        mended: Versions that lacked something and are complete now.
        lost: Versions that still lack something.
        packs: Number of packs written.
        nbytes: Their size in bytes.
        replaced: Number of damaged packs, snapshot objects and archives that were replaced.
        may_delete: Whether the store let it delete what it replaced. If not, damaged objects stay
            as they are, next to what was rebuilt.
    """

    applied: bool
    damaged: int
    missing: int
    rebuilt: dict[str, int]
    restored: tuple[SnapshotId, ...]
    mended: tuple[SnapshotId, ...]
    lost: tuple[LostVersion, ...]
    packs: int
    nbytes: int
    replaced: int
    may_delete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RepackStats:
    """The result of `repack`.

    Attributes:
        packs: Number of packs after it.
        old_packs: Number of packs before it.
        nbytes: Size of the packs after it, in bytes.
        old_bytes: Size of the packs before it, in bytes.
        aside_bytes: Size of the packs that it set aside, which are deleted later, in bytes.
        freed_bytes: Size of what it deleted, as others had replaced it a grace time ago, in bytes.
        free_from: The store's time from which on `repack`, `maintain` and `gc` delete what it set
            aside, in microseconds since 1970; 0 if nothing of it lies aside.
        unreadable: Names of packs whose index cannot be read. They are not deleted: a newer
            casweights may have written them, or a sound copy may exist elsewhere.
        compared: Number of versions of which it measured what they take as differences from each
            other.
        tree_bytes: What these take now, as estimated from a few chunks of each, in bytes.
        least_bytes: What they would take if reading a version could cost any number of bytes.
    """

    packs: int
    old_packs: int
    nbytes: int
    old_bytes: int
    unreadable: tuple[str, ...] = ()
    aside_bytes: int = 0
    freed_bytes: int = 0
    free_from: int = 0
    compared: int = 0
    tree_bytes: int = 0
    least_bytes: int = 0


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
        may_delete: Whether the store let it delete objects. If not, old moves, packs and versions
            stay as they are.
        expired: Number of versions that it recorded as expired, by the policy of the store.
        freed_bytes: Size of what it deleted, as others had replaced it a grace time ago, in bytes.
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
    freed_bytes: int = 0


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
