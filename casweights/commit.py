"""Commit: read, hash, encode what is new, pack it, and only then make the version visible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from casweights.buffers import Pool
from casweights.config import PACK_FRAMES, PACK_TARGET
from casweights.events import CommitStats, Stage
from casweights.format import names
from casweights.format.codecs import encode
from casweights.format.envelope import PREFIX_SIZE, Kind, prefix
from casweights.format.hashing import checksum
from casweights.format.manifest import FileEntry, Manifest, Snapshot
from casweights.format.pack import Frame, Location, build_index
from casweights.parallel import Background
from casweights.sources import file_runs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from casweights.config import Compression
    from casweights.database import Database
    from casweights.format.hashing import Buffer
    from casweights.format.layout import Piece
    from casweights.ids import ChunkId, SnapshotId
    from casweights.refs import Head
    from casweights.sources import SourceFile

_PUTS_IN_FLIGHT = 4  # keeps a disk busy; each holds a pack in memory


@dataclass(frozen=True, slots=True)
class _NewChunk:
    """A chunk that was read; `payload` is None where the store has it already."""

    chunk: ChunkId
    raw_size: int
    encoding: int = 0
    payload: Buffer | None = None
    checksum: bytes = b""


class PackWriter:
    """Collects frames and writes them as packs of about `PACK_TARGET` bytes in the background."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._puts = Background(_PUTS_IN_FLIGHT)
        self._added: set[ChunkId] = set()
        self._start_pack()
        self.packs = 0
        self.raw_bytes = 0
        self.stored_bytes = 0

    def _start_pack(self) -> None:
        self._frames: list[Frame] = []
        self._parts: list[Buffer] = [prefix(Kind.PACK)]
        self._size = PREFIX_SIZE

    @property
    def chunks(self) -> int:
        """Frames added so far."""
        return len(self._added)

    def add(self, new: _NewChunk) -> None:
        """Add a chunk, unless it was added before."""
        if new.payload is None or new.chunk in self._added:
            return
        size = len(new.payload)
        full = self._size + size > PACK_TARGET or len(self._frames) == PACK_FRAMES
        if self._frames and full:
            self._flush()
        self._frames.append(
            Frame(new.chunk, new.raw_size, new.encoding, self._size, size, new.checksum)
        )
        self._parts.append(new.payload)
        self._size += size
        self._added.add(new.chunk)
        self.raw_bytes += new.raw_size
        self.stored_bytes += size

    def _flush(self) -> None:
        self._puts.submit(partial(self._put, self._frames, self._parts))
        self._start_pack()
        self.packs += 1

    def _put(self, frames: list[Frame], parts: list[Buffer]) -> None:
        pack, ending = build_index(frames)
        name = names.pack_name(pack)
        while not self._db.store.put(name, [*parts, ending]) and name in self._db.index.damaged:
            # Somebody may still read parts of the damaged pack, so it stays as it is. With one
            # frame repeated, ours has another ID.
            last = frames[-1]
            frames.append(replace(frames[0], offset=last.offset + last.size))
            parts.append(parts[1])
            pack, ending = build_index(frames)
            name = names.pack_name(pack)
        self._db.index.add(name, (Location(pack, frame) for frame in frames))

    def finish(self) -> None:
        """Write what is left; when this returns, all of it is durable."""
        if self._frames:
            self._flush()
        self._puts.finish()

    def close(self) -> None:
        """End the threads."""
        self._puts.close()


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
    compression: Compression,
) -> Snapshot:
    """Write a version and move a branch to it.

    Raises:
        InvalidInputError: A file changed while it was read, or cannot be read.
        StoreError: The store could not be written. What was written stays and is found again when
            the command is repeated.
        ConflictError: Another writer moved the branch meanwhile; the version is kept.
    """
    db.index.load()
    writer = PackWriter(db)
    entries = _write_files(db, writer, files, compression)
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


def _write_files(
    db: Database, writer: PackWriter, files: Sequence[SourceFile], compression: Compression
) -> tuple[FileEntry, ...]:
    """Make all chunks of all files durable; returns the manifest's rows."""
    db.reporter.started(Stage.COMMIT, sum(file.size for file in files))
    try:
        chunks = _write_chunks(db, writer, files, compression)
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


def _write_chunks(
    db: Database, writer: PackWriter, files: Sequence[SourceFile], compression: Compression
) -> list[list[ChunkId]]:
    """Put the new chunks of all files into packs; returns each file's chunk IDs."""
    chunks: list[list[ChunkId]] = [[] for _ in files]
    for number, read in db.workers.map(
        partial(_read_run, db, files, Pool(db.config.chunk_size), compression),
        file_runs(files, db.config.chunk_size),
    ):
        for new in read:
            chunks[number].append(new.chunk)
            writer.add(new)
        db.reporter.advanced(Stage.COMMIT, sum(new.raw_size for new in read))
    return chunks


def _read_run(
    db: Database,
    files: Sequence[SourceFile],
    buffers: Pool,
    compression: Compression,
    job: tuple[int, list[Piece]],
) -> tuple[int, list[_NewChunk]]:
    number, run = job
    read = []
    for piece, raw in zip(run, files[number].read(run, buffers), strict=True):
        chunk = db.hasher(raw)
        if chunk in db.index:
            read.append(_NewChunk(chunk, piece.nbytes))
            continue
        encoding, payload = encode(raw, piece.dtype, compression)
        if payload is raw and len(run) > 1:
            payload = bytes(raw)  # lest a small chunk keep the buffer of its whole run
        read.append(_NewChunk(chunk, piece.nbytes, encoding, payload, checksum(payload)))
    return number, read
