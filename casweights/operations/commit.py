"""Commit: read, hash, encode what is new, pack it, and only then make the version visible."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.content.advice import advice
from casweights.content.files import file_runs
from casweights.database.moves import encode_move
from casweights.database.writer import PackWriter
from casweights.errors import ErrorCode, IntegrityError
from casweights.events import Stage
from casweights.format.layout import BYTES, Piece, runs
from casweights.format.manifest import EncodedSnapshot, FileEntry, Manifest, Snapshot
from casweights.operations.deltas import BaseChunks, DeltaEncoder
from casweights.operations.relatives import nearest
from casweights.results import CommitStats
from casweights.system.buffers import Pool
from casweights.system.threads import Once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from typing import Any

    from casweights.config import Compression, StoreConfig
    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.reader import TrustedChunks
    from casweights.database.refs import Head
    from casweights.format.pack import EncodedFrame, SealedPack
    from casweights.ids import ChunkId, SnapshotId


_LOOKAHEAD = 16  # runs that are read before the first of them is encoded, while bases arrive
_COSTLY_SHARE = 1 / 8  # of its raw size: other packs are read for a chunk that takes more
_MAX_READ_PACKS = 512  # beyond which reading other packs costs more than it saves


class _Run(NamedTuple):
    """Neighbouring chunks of a file, hashed.

    Attributes:
        number: The file's number.
        chunks: All of them.
        nbytes: Their bytes.
        read: Those that the store may lack.
    """

    number: int
    chunks: list[ChunkId]
    nbytes: int
    read: list[_ReadChunk]


class _ReadChunk(NamedTuple):
    """A chunk that was read."""

    chunk: ChunkId
    piece: Piece
    view: memoryview


class _Encoded(NamedTuple):
    """A run of which the store lacks some chunks, with the frames of these."""

    run: _Run
    frames: list[tuple[_ReadChunk, list[EncodedFrame]]]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedVersion:
    """A version that only has to be written.

    Attributes:
        snapshot: What it is.
        manifest: The snapshot's manifest, encoded.
        last: Its pack, if that is the only one; where there are more, all are written.
        stats: What a commit of it is.
    """

    snapshot: Snapshot
    manifest: bytes
    last: SealedPack | None
    stats: CommitStats

    def detached(self) -> Self:
        """The same without memory of the files' own, which may change before it is written.

        Chunks that are stored as they are share it.
        """
        if self.last is None:
            return self
        parts = [bytes(part) if isinstance(part, memoryview) else part for part in self.last.parts]
        return replace(self, last=replace(self.last, parts=parts))


@dataclass(frozen=True, slots=True)
class _Commit:
    """What reading and encoding need to know.

    Attributes:
        repeats: Set while the store has what is read, so that looking at live tensors first saves
            copying them. Not with a cache in memory, which wants the copies.
    """

    db: Database
    files: Sequence[SourceFile]
    buffers: Pool
    bases: Once[BaseChunks]
    encoder: DeltaEncoder
    look_everywhere: Once[None]
    repeats: threading.Event = field(default_factory=threading.Event)


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
    """Write a version and move a branch to it; see `encode_version` and `write_version`.

    If a chunk that the store had is lost by the time that the version is written, the version is
    encoded once more, which stores the chunk again. If an error left it unclear whether the branch
    has moved to its head, and this is what was to be committed then, nothing is written.
    """
    for code, problem in advice(files, db.config.chunk_size):
        db.reporter.warned(code, problem)
    encode = partial(encode_version, db, files, description, base=base, compression=compression)
    version = encode()
    if (there := repeated(db, version.snapshot, head)) is not None:
        db.reporter.committed(replace(version.stats, snapshot=there.id))
        return there
    try:
        write_version(db, version, branch, head)
    except IntegrityError as error:
        if error.code is not ErrorCode.MISSING_CHUNK:
            raise
        version = encode()
        write_version(db, version, branch, head)
    return version.snapshot


def encode_version(
    db: Database,
    files: Sequence[SourceFile],
    description: Description,
    *,
    base: Snapshot | None,
    compression: Compression,
    nearby: TrustedChunks | None = None,
) -> EncodedVersion:
    """Read and encode a version; what does not fit into one pack is written already.

    Chunks are stored as differences from those at the same places of `base`, or without one of
    the branch or tag that the version resembles most.

    Args:
        db: The store.
        files: What the version consists of.
        description: What is said about it.
        base: The version before it.
        compression: How chunks without a base are stored.
        nearby: May have the chunks of `base`; by default the store's own cache.

    Raises:
        InvalidInputError: A file changed while it was read, or cannot be read; or the format has
            no place for the metadata, and nothing was written.
        StoreError: The store could not be written. What was written stays and is found again when
            the command is repeated.
    """
    EncodedSnapshot.of(description.manifest(db.config, ()))  # refuses bad metadata before any work
    db.heed_findings()
    writer, buffers = PackWriter(db), Pool(db.config.chunk_size)
    bases = Once(lambda: _resembling(db, files, buffers) if base is None else BaseChunks(base))
    encoder = DeltaEncoder(db.reader, db.index, nearby or db.cache, compression)
    most = None if db.store.capabilities.cheap_reads else _MAX_READ_PACKS
    work = _Commit(db, files, buffers, bases, encoder, Once(partial(db.index.load, most)))
    if db.store.capabilities.cheap_reads:
        work.look_everywhere()
    else:
        db.index.prepare_all()  # of the base; further packs only where they may save much
    entries, last = _write_files(work, writer)
    snapshot, manifest = EncodedSnapshot.of(description.manifest(db.config, entries))
    stats = CommitStats(
        snapshot=snapshot.id,
        total_bytes=snapshot.size,
        new_bytes=writer.raw_bytes,
        stored_bytes=writer.stored_bytes,
        chunks=sum(len(entry.chunks) for entry in entries),
        new_chunks=writer.chunks,
        packs=writer.packs,
    )
    return EncodedVersion(snapshot=snapshot, manifest=manifest, last=last, stats=stats)


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
    snapshot, last = version.snapshot, version.last
    move = encode_move(snapshot.id)
    early = [[move]] if db.config.refs is None else []
    db.snapshots.save(snapshot, version.manifest, last, early=early, assume_absent=assume_absent)
    if last is not None:
        db.index.add(last.name, last.size, last.locations)
    moved = db.refs.advance(branch, head, snapshot.id, move)
    report(db, version.stats, moved)
    return moved


def report(db: Database, stats: CommitStats, moved: Head) -> None:
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


def _resembling(db: Database, files: Sequence[SourceFile], buffers: Pool) -> BaseChunks:
    """The chunks of the branch or tag that differs least, if there is one worth it."""
    by_path = {file.path: file for file in files}
    return (
        nearest(
            (
                BaseChunks(db.snapshots.load(version, with_locations=True))
                for version in db.refs.tips()
            ),
            [(file.path, piece) for file in files for piece in file.pieces(db.config.chunk_size)],
            lambda path, piece: by_path[path].read([piece], buffers)[0],
            db.reader.with_local(db.cache),
        )
        or BaseChunks()
    )


def _write_files(
    work: _Commit, writer: PackWriter
) -> tuple[tuple[FileEntry, ...], SealedPack | None]:
    """Make the chunks of all files durable; returns the manifest's rows and what is left."""
    db, files = work.db, work.files
    db.reporter.started(Stage.COMMIT, sum(file.size for file in files))
    try:
        chunks = _write_chunks(work, writer)
        last = writer.last()
        _check_unchanged(work, chunks)
    finally:
        writer.close()
        db.reporter.finished(Stage.COMMIT)
    entries = tuple(
        FileEntry(file.path, file.size, file.raw_header, file.header, tuple(ids))
        for file, ids in zip(files, chunks, strict=True)
    )
    return entries, last


def _check_unchanged(work: _Commit, chunks: Sequence[Sequence[ChunkId]]) -> None:
    """Check that all files are what they were when reading began.

    Raises:
        InvalidInputError: One has changed, or another file has appeared beside them.
    """
    for file, ids in zip(work.files, chunks, strict=True):
        if not file.check_unchanged() and not _is_same(work, file, ids):
            raise file.changed()
    for tree in {id(file.tree): file.tree for file in work.files}.values():
        if tree is not None:
            tree.check_complete()


def _is_same(work: _Commit, file: SourceFile, ids: Sequence[ChunkId]) -> bool:
    """Whether a file still has the bytes that were read; reads it once more."""
    header = file.raw_header or b""
    if bytes(file.read([Piece(0, len(header), BYTES)], work.buffers)[0]) != header:
        return False

    def hashed(job: tuple[int, list[Piece]]) -> list[ChunkId]:
        return [work.db.hasher(view) for view in file.read(job[1], work.buffers)]

    again = work.db.workers.map(hashed, file_runs([file], work.db.config.chunk_size))
    return [chunk for run in again for chunk in run] == list(ids)


def _write_chunks(work: _Commit, writer: PackWriter) -> list[list[ChunkId]]:
    """Put the new chunks of all files into packs; returns each file's chunk IDs."""
    db, files = work.db, work.files
    chunks: list[list[ChunkId]] = [[] for _ in files]
    for run, new in _read_runs(work):
        chunks[run.number] += run.chunks
        for read, frames in new:
            writer.add(read.chunk, read.piece.nbytes, frames)
        db.reporter.advanced(Stage.COMMIT, run.nbytes)
    return chunks


def _read_runs(work: _Commit) -> Iterator[_Encoded]:
    """All chunks of all files in order, with the frames of those that the store lacks."""
    workers, runs = work.db.workers, file_runs(work.files, work.db.config.chunk_size)
    if work.db.store.capabilities.cheap_reads:
        yield from workers.map(lambda job: _encode_run(work, _hash_run(work, job)), runs)
        return
    with work.encoder.ahead() as announce:
        hashed = workers.map(partial(_hash_run, work), runs)
        yield from workers.map(partial(_encode_run, work), _announced(work, hashed, announce))


def _announced(
    work: _Commit, runs: Iterator[_Run], announce: Callable[[Sequence[ChunkId]], None]
) -> Iterator[_Run]:
    """Runs, some later than they come, so that the bases they need are on their way."""
    waiting: deque[_Run] = deque()
    for run in runs:
        changed = [
            base
            for chunk, piece, _ in run.read
            if chunk not in work.db.index
            and (base := _base(work, work.files[run.number], piece)) is not None
        ]
        announce(changed)
        waiting.append(run)
        # Without bases there is nothing to wait for.
        while len(waiting) > (_LOOKAHEAD if changed else 0):
            yield waiting.popleft()
    yield from waiting


def _hash_run(work: _Commit, job: tuple[int, list[Piece]]) -> _Run:
    number, pieces = job
    file, index, hasher = work.files[number], work.db.index, work.db.hasher
    nbytes = sum(piece.nbytes for piece in pieces)
    ids = index.having(file.chunk_ids(pieces))
    if None not in ids:
        return _Run(number, ids, nbytes, [])  # type: ignore[arg-type]
    lacking = [n for n, chunk in enumerate(ids) if chunk is None]
    whole = len(lacking) == len(pieces)
    if whole and work.repeats.is_set() and (live := file.look(pieces)) is not None:
        known = [hasher(view) for view in live]
        if all(chunk in index for chunk in known):
            return _Run(number, known, nbytes, [])
    read: list[_ReadChunk] = []
    for part in runs((pieces[n] for n in lacking), work.db.config.chunk_size):
        views = file.read(part, work.buffers)
        read += (_ReadChunk(hasher(v), piece, v) for piece, v in zip(part, views, strict=True))
    for n, new in zip(lacking, read, strict=True):
        ids[n] = new.chunk
    if not work.db.cache.is_used and all(new.chunk in index for new in read):
        work.repeats.set()
    else:
        work.repeats.clear()
    return _Run(number, ids, nbytes, read)  # type: ignore[arg-type]


def _encode_run(work: _Commit, run: _Run) -> _Encoded:
    encoded = []
    for read in run.read:
        frames = _frames(work, work.files[run.number], read)
        if len(run.read) > 1:  # a small chunk would keep the buffer of its whole run otherwise
            frames = [_detached(frame, read.view) for frame in frames]
        work.db.cache.put(read.chunk, read.view)
        encoded.append((read, frames))
    return _Encoded(run, encoded)


def _base(work: _Commit, file: SourceFile, piece: Piece) -> ChunkId | None:
    """The chunk to store another one as a difference from."""
    return file.base(piece) or work.bases().find(file.path, piece)


def _frames(work: _Commit, file: SourceFile, read: _ReadChunk) -> list[EncodedFrame]:
    """The frames to store for a chunk; none if the store has it."""
    index, (chunk, piece, raw) = work.db.index, read
    if chunk in index:
        return []
    base = _base(work, file, piece)
    if base is None:
        work.look_everywhere()
        if chunk in index:
            return []
    frames = work.encoder.encode(raw, piece.dtype, base)
    # The smallest of them, because a cheap step may come with a new keyframe.
    if min(len(frame.payload) for frame in frames) > _COSTLY_SHARE * piece.nbytes:
        work.look_everywhere()
    return [] if chunk in index else frames


def _detached(frame: EncodedFrame, raw: memoryview) -> EncodedFrame:
    return replace(frame, payload=bytes(raw)) if frame.payload is raw else frame
