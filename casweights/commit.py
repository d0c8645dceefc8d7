"""Commit: read, hash, encode what is new, pack it, and only then make the version visible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.buffers import Pool
from casweights.chains import Bases, ChainEncoder
from casweights.events import CommitStats, Stage
from casweights.format.manifest import FileEntry, Manifest, Snapshot
from casweights.packing import EncodedFrame, PackWriter
from casweights.parallel import Once
from casweights.relatives import nearest
from casweights.sources import file_runs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from casweights.config import Compression
    from casweights.database import Database
    from casweights.format.layout import Piece
    from casweights.ids import ChunkId, SnapshotId
    from casweights.refs import Head
    from casweights.sources import SourceFile


class _ReadChunk(NamedTuple):
    """A chunk of the version; without frames where the store has it already."""

    chunk: ChunkId
    raw_size: int
    frames: list[EncodedFrame]


@dataclass(frozen=True, slots=True)
class _Commit:
    """What reading and encoding need to know."""

    db: Database
    files: Sequence[SourceFile]
    buffers: Pool
    bases: Once[Bases]
    encoder: ChainEncoder


def commit(
    db: Database,
    files: Sequence[SourceFile],
    *,
    branch: str,
    head: Head | None,
    parents: tuple[SnapshotId, ...],
    time: datetime,
    author: str,
    message: str,
    metadata: dict[str, Any],
    base: Snapshot | None,
    compression: Compression,
) -> Snapshot:
    """Write a version and move a branch to it.

    Chunks are stored as differences from those at the same places of `base`, or without one of
    the branch or tag that the version resembles most.

    Raises:
        InvalidInputError: A file changed while it was read, or cannot be read.
        StoreError: The store could not be written. What was written stays and is found again when
            the command is repeated.
        ConflictError: Another writer moved the branch meanwhile; the version is kept.
    """
    db.index.load()
    writer, buffers = PackWriter(db), Pool(db.config.chunk_size)
    bases = Once(lambda: _resembling(db, files, buffers) if base is None else Bases(base))
    encoder = ChainEncoder(db.reader, db.index, db.cache, compression)
    work = _Commit(db, files, buffers, bases, encoder)
    entries = _write_files(work, writer)
    manifest = Manifest(
        parents=parents,
        time=time,
        author=author,
        message=message,
        metadata=metadata,
        config=db.config,
        files=entries,
    )
    snapshot = db.snapshots.save(manifest)
    db.refs.advance(branch, head, snapshot.id)
    stats = CommitStats(
        snapshot=snapshot.id,
        total_bytes=snapshot.size,
        new_bytes=writer.raw_bytes,
        stored_bytes=writer.stored_bytes,
        chunks=sum(len(entry.chunks) for entry in entries),
        new_chunks=writer.chunks,
        packs=writer.packs,
    )
    db.reporter.committed(stats)
    return snapshot


def _resembling(db: Database, files: Sequence[SourceFile], buffers: Pool) -> Bases:
    """The chunks of the branch or tag that differs least, if there is one worth it."""
    by_path = {file.path: file for file in files}
    named = dict.fromkeys((*db.refs.branches().values(), *db.refs.tags().values()))
    return (
        nearest(
            (Bases(db.snapshots.load(version)) for version in named),
            [(file.path, piece) for file in files for piece in file.pieces(db.config.chunk_size)],
            lambda path, piece: by_path[path].read([piece], buffers)[0],
            db.reader.near(db.cache),
        )
        or Bases()
    )


def _write_files(work: _Commit, writer: PackWriter) -> tuple[FileEntry, ...]:
    """Make all chunks of all files durable; returns the manifest's rows."""
    db, files = work.db, work.files
    db.reporter.started(Stage.COMMIT, sum(file.size for file in files))
    try:
        chunks = _write_chunks(work, writer)
        writer.finish()
        for file in files:
            file.check_unchanged()
    finally:
        writer.close()
        db.reporter.finished(Stage.COMMIT)
    return tuple(
        FileEntry(file.path, file.size, file.raw_header, file.header, tuple(ids))
        for file, ids in zip(files, chunks, strict=True)
    )


def _write_chunks(work: _Commit, writer: PackWriter) -> list[list[ChunkId]]:
    """Put the new chunks of all files into packs; returns each file's chunk IDs."""
    db, files = work.db, work.files
    chunks: list[list[ChunkId]] = [[] for _ in files]
    runs = file_runs(files, db.config.chunk_size)
    for number, read in db.workers.map(partial(_read_run, work), runs):
        for new in read:
            chunks[number].append(new.chunk)
            writer.add(new.chunk, new.raw_size, new.frames)
        db.reporter.advanced(Stage.COMMIT, sum(new.raw_size for new in read))
    return chunks


def _read_run(work: _Commit, job: tuple[int, list[Piece]]) -> tuple[int, list[_ReadChunk]]:
    number, run = job
    file = work.files[number]
    read = []
    for piece, raw in zip(run, file.read(run, work.buffers), strict=True):
        chunk = work.db.hasher(raw)
        frames: list[EncodedFrame] = []
        if chunk not in work.db.index:
            base = work.bases().find(file.path, piece)
            frames = work.encoder.encode(raw, piece.dtype, base)
            if len(run) > 1:  # lest a small chunk keep the buffer of its whole run
                frames = [_detached(frame, raw) for frame in frames]
        work.db.cache.put(chunk, raw)
        read.append(_ReadChunk(chunk, piece.nbytes, frames))
    return number, read


def _detached(frame: EncodedFrame, raw: memoryview) -> EncodedFrame:
    return replace(frame, payload=bytes(raw)) if frame.payload is raw else frame
