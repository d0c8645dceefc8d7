"""A version from several parts: many processes encode files of their own, one of them commits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from casweights.format.manifest import EncodedSnapshot, Snapshot
from casweights.format.snapshot import PackTable, StoredSnapshot
from casweights.operations.commit import (
    Description,
    encode_version,
    repeated,
    report,
)
from casweights.results import CommitStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.config import Compression
    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.refs import Head
    from casweights.format.manifest import FileEntry, Snapshot

_UNSAID = Description(
    parents=(), time=datetime(1970, 1, 1, tzinfo=UTC), author="", message="", metadata={}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Files whose chunks are durable, but that no version has yet; may be pickled.

    Attributes:
        files: The files.
        table: Where their chunks lie, which another process need not look up.
        stats: What was written for them; `snapshot` is of no use.
    """

    files: tuple[FileEntry, ...]
    table: PackTable
    stats: CommitStats


def encode_part(
    db: Database, files: Sequence[SourceFile], *, base: Snapshot | None, compression: Compression
) -> Part:
    """Make the chunks of some files durable; see `encode_version` for arguments and errors."""
    # Encoded like a version of its own, which nobody ever sees.
    version = encode_version(db, files, _UNSAID, base=base, compression=compression)
    if (last := version.last) is not None:
        db.store.put(last.name, last.parts)
        db.index.add(last.name, last.size, last.locations)
    table = db.snapshots.placed(db.snapshots.pack_table(version.snapshot))
    return Part(files=version.snapshot.files, table=table, stats=version.stats)


def commit_parts(
    db: Database, parts: Sequence[Part], description: Description, branch: str, head: Head | None
) -> Snapshot:
    """Write the version that has the files of all parts, and move a branch to it.

    Args:
        db: The store.
        parts: The parts; no two have a file of the same path.
        description: What is said about the version.
        branch: The branch.
        head: Where the branch was seen last; None for a new one.

    Raises:
        InvalidInputError: Two parts have a file of the same path.
        StoreError: The store could not be written.
        ConflictError: Another writer moved the branch meanwhile; the version is kept.
    """
    files = sorted((file for part in parts for file in part.files), key=lambda file: file.path)
    snapshot, manifest = EncodedSnapshot.of(description.manifest(db.config, tuple(files)))
    if (there := repeated(db, snapshot, head)) is not None:
        return there
    table = _joined([part.table for part in parts])
    db.index.learn(table)
    db.snapshots.save_copy(StoredSnapshot(snapshot, manifest, table))
    moved = db.refs.advance(branch, head, snapshot.id)
    stats = CommitStats(
        snapshot=snapshot.id,
        total_bytes=snapshot.size,
        new_bytes=sum(part.stats.new_bytes for part in parts),
        stored_bytes=sum(part.stats.stored_bytes for part in parts),
        chunks=sum(part.stats.chunks for part in parts),
        new_chunks=sum(part.stats.new_chunks for part in parts),
        packs=sum(part.stats.packs for part in parts),
    )
    report(db, stats, moved)
    return snapshot


def _joined(tables: Sequence[PackTable]) -> PackTable:
    return PackTable(
        packs=list(dict.fromkeys(pack for table in tables for pack in table.packs)),
        chunks={chunk: pack for table in tables for chunk, pack in table.chunks.items()},
        places={pack: place for table in tables for pack, place in table.places.items()},
    )
