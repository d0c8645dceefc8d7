"""Commit: encode files, and only then make the version that has them visible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from casweights.content.advice import advice
from casweights.database.moves import encode_move
from casweights.errors import ErrorCode, IntegrityError
from casweights.format.manifest import EncodedSnapshot, FileEntry, Manifest, Snapshot
from casweights.format.snapshot import StoredSnapshot
from casweights.operations.encode import EncodedFiles, encode_files
from casweights.results import CommitStats

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from casweights.config import Compression, StoreConfig
    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.refs import Head
    from casweights.ids import SnapshotId


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is said about a version; see `Manifest`."""

    parents: tuple[SnapshotId, ...]
    time: datetime
    author: str
    message: str
    metadata: dict[str, Any]

    def manifest(self, config: StoreConfig, files: tuple[FileEntry, ...]) -> Manifest:
        """The manifest of a version of which this is said."""
        return Manifest(
            parents=self.parents,
            time=self.time,
            author=self.author,
            message=self.message,
            metadata=self.metadata,
            config=config,
            files=files,
        )

    def check(self, config: StoreConfig) -> None:
        """Refuse what the format has no place for, before any work.

        Raises:
            InvalidInputError: There is such metadata or text.
        """
        EncodedSnapshot.of(self.manifest(config, ()))


@dataclass(frozen=True, slots=True)
class EncodedVersion:
    """A version that only has to be written.

    Attributes:
        snapshot: The version.
        manifest: Its manifest, encoded.
        encoded: Its files.
    """

    snapshot: Snapshot
    manifest: bytes
    encoded: EncodedFiles

    @classmethod
    def of(cls, db: Database, encoded: EncodedFiles, description: Description) -> Self:
        """The version that has these files.

        Raises:
            InvalidInputError: Two files have the same path, or the format has no place for what is
                said about the version.
        """
        return cls(*EncodedSnapshot.of(description.manifest(db.config, encoded.files)), encoded)

    @property
    def stats(self) -> CommitStats:
        """What a commit of it is."""
        written = self.encoded.written
        return CommitStats(
            snapshot=self.snapshot.id,
            total_bytes=self.snapshot.size,
            new_bytes=written.new_bytes,
            stored_bytes=written.stored_bytes,
            chunks=sum(len(file.chunks) for file in self.snapshot.files),
            new_chunks=written.new_chunks,
            packs=written.packs,
        )


def commit(
    db: Database,
    files: Sequence[SourceFile],
    description: Description,
    *,
    branch: str,
    head: Head | None,
    base: Snapshot | None,
    compression: Compression,
) -> Snapshot:
    """Encode files, write the version that has them, and move a branch to it.

    If a chunk that the store had is lost by the time that the version is written, the files are
    encoded once more, which stores the chunk again. For arguments and errors see `encode_files` and
    `commit_encoded`.
    """
    description.check(db.config)
    for code, problem in advice(files, db.config.chunk_size):
        db.reporter.warned(code, problem)
    encode = partial(encode_files, db, files, base=base, compression=compression)
    try:
        return commit_encoded(db, encode(), description, branch, head)
    except IntegrityError as error:
        if error.code is not ErrorCode.MISSING_CHUNK:
            raise
        return commit_encoded(db, encode(), description, branch, head)


def commit_encoded(
    db: Database, encoded: EncodedFiles, description: Description, branch: str, head: Head | None
) -> Snapshot:
    """Write the version that has these files, and move a branch to it.

    If an error left it unclear whether the branch has moved to its head, and this is what was to be
    committed then, nothing is written.

    Args:
        db: The store.
        encoded: The files.
        description: What is said about the version.
        branch: The branch.
        head: Where the branch was seen last; None for a new one.

    Raises:
        InvalidInputError: Two files have the same path.
        StoreError: The store could not be written.
        ConflictError: Another writer moved the branch meanwhile; the version is kept.
    """
    version = EncodedVersion.of(db, encoded, description)
    if (there := repeated(db, version.snapshot, head)) is not None:
        db.reporter.committed(replace(version.stats, snapshot=there.id))
        return there
    write_version(db, version, branch, head)
    return version.snapshot


def write_version(
    db: Database,
    version: EncodedVersion,
    branch: str,
    head: Head | None,
    *,
    assume_absent: bool = False,
) -> Head:
    """Make a version durable, and move a branch to it.

    Args:
        db: The store.
        version: The version.
        branch: The branch.
        head: Where the branch was seen last; None for a new one.
        assume_absent: The caller guarantees that nothing of it is in the store yet, because it was
            not tried before.

    Returns:
        Where it is now.

    Raises:
        StoreError: The store could not be written.
        ConflictError: Another writer moved the branch meanwhile; the version is kept.
    """
    move = encode_move(version.snapshot.id)
    if (table := version.encoded.table) is not None:
        db.index.learn(table)
        db.snapshots.save_copy(StoredSnapshot(version.snapshot, version.manifest, table))
    else:
        _save(db, version, move, assume_absent=assume_absent)
    moved = db.refs.advance(branch, head, version.snapshot.id, move)
    _report(db, version.stats, moved)
    return moved


def _save(db: Database, version: EncodedVersion, move: bytes, *, assume_absent: bool) -> None:
    """Make the last pack and the snapshot durable; the branch's move is sent along early."""
    last = version.encoded.last
    early = [[move]] if db.config.refs is None else []
    db.snapshots.save(
        version.snapshot, version.manifest, last, early=early, assume_absent=assume_absent
    )
    if last is not None:
        db.index.add(last.name, last.size, last.locations)


def _report(db: Database, stats: CommitStats, moved: Head) -> None:
    """Tell the reporter of a version; if it fails, the commit may be repeated."""
    try:
        db.reporter.committed(stats)
    except BaseException:
        db.refs.doubt(moved)
        raise


def repeated(db: Database, version: Snapshot, head: Head | None) -> Snapshot | None:
    """The version that a commit repeats, because an error came when it had landed.

    Args:
        db: The store.
        version: What is to be committed.
        head: Where the branch is.

    Returns:
        The version at `head`, if its commit ended in an error and it differs from `version` only
        in its time and parents.
    """
    if head is None or not db.refs.is_doubted(head):
        return None
    there = db.snapshots.load(head.snapshot)
    as_there = EncodedSnapshot.of(replace(version, time=there.time, parents=there.parents))
    return there if as_there.snapshot.id == there.id else None
