"""Commit: encode files, then write the version that contains them, then move the branch.

This order makes a version visible only when all that it refers to is durable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from casweights.content.advice import advice
from casweights.database.moves import Version
from casweights.database.resolve import check_stands
from casweights.errors import ConflictError, ErrorCode, IntegrityError
from casweights.format.manifest import EncodedSnapshot, Manifest, Snapshot
from casweights.format.snapshot import StoredSnapshot
from casweights.ids import CarriedPackId
from casweights.operations.encode import encode_files
from casweights.operations.reliance import Reliance
from casweights.results import CommitStats

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from casweights.config import Compression, StoreConfig
    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.moves import Head
    from casweights.format.file_entry import FileEntry
    from casweights.ids import SnapshotId
    from casweights.operations.encoded_files import EncodedFiles
    from casweights.stores.base import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a manifest records of a version, apart from its files."""

    parents: tuple[SnapshotId, ...]
    time: datetime
    author: str
    message: str
    metadata: dict[str, Any]

    def manifest(self, config: StoreConfig, files: tuple[FileEntry, ...], number: int) -> Manifest:
        """Return the manifest of the version with this description, these files and number."""
        return Manifest(
            number=number,
            parents=self.parents,
            time=self.time,
            author=self.author,
            message=self.message,
            metadata=self.metadata,
            config=config,
            files=files,
        )

    def check(self, config: StoreConfig) -> None:
        """Check that the format can store the description, before any file is read.

        Raises:
            InvalidInputError: It cannot store the metadata or one of the texts.
        """
        EncodedSnapshot.of(self.manifest(config, (), 1))


@dataclass(frozen=True, slots=True)
class EncodedVersion:
    """A version that is ready to be written.

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
        """Build the version that contains these files, without writing it.

        Raises:
            InvalidInputError: Two files have the same path, or the format cannot store the
                description.
        """
        first = next(iter(description.parents), None)
        number = 1 if first is None else db.snapshots.load(first).number + 1
        manifest = description.manifest(db.config, encoded.files, number)
        return cls(*EncodedSnapshot.of(manifest), encoded)

    @property
    def stats(self) -> CommitStats:
        """The counts that a commit of this version reports."""
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
    parent: Snapshot | None,
    compression: Compression,
    base: Snapshot | None = None,
    standalone: bool = False,
) -> Snapshot:
    """Encode files, write the version that contains them, and move a branch to it.

    If a chunk that the store contained is lost by the time that the version is written, the files
    are encoded a second time, which stores the chunk again.

    Args:
        db: The store.
        files: The files.
        description: The version's description.
        branch: The branch.
        head: Where the branch was last seen; None for a new one.
        parent: The first parent; None without one. New chunks are stored as differences from
            its chunks; without it, a version to build on is searched for.
        compression: How chunks without a base are stored.
        base: A version to build on before the parent; None for none.
        standalone: Whether no chunk may be a function of others.

    Raises:
        InvalidInputError: A file changed while it was read, or cannot be read; two have the same
            path; or the format cannot store the description.
        StoreError: The store could not be written.
        ConflictError: Another writer moved the branch in between; the version is kept.
    """
    description.check(db.config)
    for code, problem in advice(files, db.config.chunk_size):
        db.reporter.warned(code, problem)
    encode = partial(
        encode_files,
        db,
        files,
        parent=parent,
        base=base,
        compression=compression,
        begins=head is None,
        standalone=standalone,
    )
    try:
        return commit_encoded(db, encode(), description, branch, head)
    except IntegrityError as error:
        if error.code is not ErrorCode.MISSING_CHUNK:
            raise
        return commit_encoded(db, encode(), description, branch, head)


def commit_encoded(
    db: Database, encoded: EncodedFiles, description: Description, branch: str, head: Head | None
) -> Snapshot:
    """Write the version that contains these files, and move a branch to it.

    Nothing is written if this repeats a commit that ended in an error after the branch had moved.

    Args:
        db: The store.
        encoded: The files.
        description: The version's description.
        branch: The branch.
        head: Where the branch was last seen; None for a new one.

    Returns:
        The version at the branch's head.

    Raises:
        InvalidInputError: Two files have the same path.
        StoreError: The store could not be written.
        ConflictError: Another writer moved the branch in between; the version is kept.
    """
    version = EncodedVersion.of(db, encoded, description)
    if (existing := repeated(db, version.snapshot, head)) is not None:
        db.reporter.committed(replace(version.stats, snapshot=existing.id))
        return existing
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
        head: Where the branch was last seen; None for a new one.
        assume_absent: The caller guarantees that no part of the version is in the store, because
            this is the first attempt to write it.

    Returns:
        The branch's new head.

    Raises:
        NotFoundError: The parent of a new branch is not in the store any more.
        IntegrityError: Hours have passed since the version was encoded, and chunks are gone.
        StoreError: The store could not be written.
        ConflictError: Another writer moved the branch in between; the version is kept.
    """
    stored, parts = _encode(db, version)
    relied = Reliance(db, stored, version.encoded.seen, is_first=head is None)
    if head is None:  # else the branch names the parent
        for parent in version.snapshot.parents:
            check_stands(db, parent)
    companions = _companions(db, version)
    if db.index.has_pack(CarriedPackId(version.snapshot.id)):
        # Another branch has the same version, whose object carries the frames that this one relies
        # on. A second object of this ID would hide them.
        check_stands(db, version.snapshot.id)
        companions = []
        moved = db.refs.advance(branch, head, version.snapshot.id, ready=relied)
    elif db.refs.takes_versions:
        content = Version(parts, assume_absent, companions)
        moved = _move_by(db, stored, content, branch, head, relied)
    else:
        relied()
        db.snapshots.save(stored, parts, companions, assume_absent=assume_absent)
        relied.is_saved = True
        moved = db.refs.advance(branch, head, version.snapshot.id, ready=relied)
    db.snapshots.retain()
    if companions:
        db.signatures.tidy()
    _report(db, version.stats, moved)
    return moved


def _encode(db: Database, version: EncodedVersion) -> tuple[StoredSnapshot, Parts]:
    """Return a version with the content of its object."""
    encoded, table = version.encoded, version.encoded.table
    if table is None:
        snapshot, manifest = version.snapshot, version.manifest
        # A repetition may have found what an earlier attempt wrote.
        others = [one for one in encoded.lineage if one.snapshot != snapshot.id]
        return db.snapshots.encode(snapshot, manifest, encoded.last, *others)
    db.index.learn(table)
    return db.snapshots.encode_copy(StoredSnapshot(version.snapshot, version.manifest, table))


def _companions(db: Database, version: EncodedVersion) -> list[tuple[str, Parts]]:
    """Return the objects that go with a version: its signature, if it has one."""
    signature = version.encoded.signature
    if signature is None:
        return []
    encoded = db.signatures.encode(version.snapshot.id, signature)
    return [(encoded.name, encoded.parts)]


def _move_by(
    db: Database,
    stored: StoredSnapshot,
    content: Version,
    branch: str,
    head: Head | None,
    relied: Reliance,
) -> Head:
    """Add a version to the store and move a branch to it, by one object."""
    try:
        moved = db.refs.advance(branch, head, stored.snapshot.id, content, ready=relied)
    except ConflictError:
        db.snapshots.saved(stored)  # a repetition finds the frames
        raise
    db.snapshots.saved(stored)
    return moved


def _report(db: Database, stats: CommitStats, moved: Head) -> None:
    """Report a committed version."""
    try:
        db.reporter.committed(stats)
    except BaseException:
        # The caller sees an error although the branch has moved, and may repeat the commit:
        # `repeated` then recognises it.
        db.refs.doubt(moved)
        raise


def repeated(db: Database, version: Snapshot, head: Head | None) -> Snapshot | None:
    """Return the version that an earlier attempt at the same commit wrote, if there was one.

    Args:
        db: The store.
        version: The version to commit.
        head: The branch's head.

    Returns:
        The version at `head`, if its commit ended in an error and it differs from `version` only
        in its time and parents; otherwise None.
    """
    if head is None or not db.refs.is_doubted(head):
        return None
    existing = db.snapshots.load(head.snapshot)
    same = EncodedSnapshot.of(
        replace(version, number=existing.number, time=existing.time, parents=existing.parents)
    )
    return existing if same.snapshot.id == existing.id else None
