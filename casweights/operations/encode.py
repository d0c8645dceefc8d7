"""Encode: read and hash files, and make the chunks durable that the store lacks."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.content.files import file_runs
from casweights.database.writer import PackWriter
from casweights.events import Stage
from casweights.format.layout import BYTES, Piece, runs
from casweights.format.manifest import FileEntry, Snapshot
from casweights.format.snapshot import PackTable
from casweights.operations.differences import BaseChunks, DifferenceEncoder
from casweights.operations.relatives import nearest
from casweights.system.buffers import Pool
from casweights.system.threads import Once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.config import Compression
    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.reader import TrustedChunks
    from casweights.format.pack import EncodedFrame, SealedPack
    from casweights.ids import ChunkId


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


class Written(NamedTuple):
    """What was written for some files.

    Attributes:
        new_bytes: Bytes of the chunks that the store did not have.
        stored_bytes: What these take in the store, encoded.
        new_chunks: Their number.
        packs: Number of packs that hold them.
    """

    new_bytes: int = 0
    stored_bytes: int = 0
    new_chunks: int = 0
    packs: int = 0


@dataclass(frozen=True, slots=True)
class EncodedFiles:
    """Files whose chunks are in the store, or in a pack that only has to be written.

    Once they are `durable`, they may be pickled and joined with those of other processes.

    Attributes:
        files: The rows of a manifest.
        last: The pack, if it is the only one; if there are more, all are written.
        written: What was written for them, the last pack included.
        table: Where the chunks of durable files lie, which another process need not look up.
    """

    files: tuple[FileEntry, ...]
    last: SealedPack | None
    written: Written
    table: PackTable | None = None

    def detached(self) -> Self:
        """The same without memory of the files' own, which may change before it is written.

        Chunks that are stored as they are share it.
        """
        if self.last is None:
            return self
        parts = [bytes(part) if isinstance(part, memoryview) else part for part in self.last.parts]
        return replace(self, last=replace(self.last, parts=parts))

    def durable(self, db: Database) -> Self:
        """The same once the last pack is written, too.

        Raises:
            StoreError: The store could not be written.
        """
        if self.last is not None:
            db.store.put(self.last.name, self.last.parts)
            db.index.add(self.last.name, self.last.size, self.last.locations)
        chunks = dict.fromkeys(chunk for file in self.files for chunk in file.chunks)
        table = db.snapshots.placed(db.snapshots.pack_table(chunks))
        return replace(self, last=None, table=table)


def join(parts: Sequence[EncodedFiles]) -> EncodedFiles:
    """All durable files of several processes, as those of one version."""
    files = sorted((file for part in parts for file in part.files), key=lambda file: file.path)
    tables = [part.table for part in parts if part.table is not None]
    return EncodedFiles(
        files=tuple(files),
        last=None,
        written=Written(*map(sum, zip(*(part.written for part in parts), strict=True))),
        table=PackTable(
            packs=list(dict.fromkeys(pack for table in tables for pack in table.packs)),
            chunks={chunk: pack for table in tables for chunk, pack in table.chunks.items()},
            places={pack: place for table in tables for pack, place in table.places.items()},
        ),
    )


@dataclass(frozen=True, slots=True)
class _Encoding:
    """What reading and encoding need to know.

    Attributes:
        repeats: Set while the store has what is read, so that looking at live tensors first saves
            copying them. Not with a cache in memory, which wants the copies.
    """

    db: Database
    files: Sequence[SourceFile]
    buffers: Pool
    bases: Once[BaseChunks]
    encoder: DifferenceEncoder
    look_everywhere: Once[None]
    repeats: threading.Event = field(default_factory=threading.Event)


def encode_files(
    db: Database,
    files: Sequence[SourceFile],
    *,
    base: Snapshot | None,
    compression: Compression,
    trusted: TrustedChunks | None = None,
) -> EncodedFiles:
    """Read and encode files; what does not fit into one pack is written already.

    Chunks are stored as differences from those at the same places of `base`, or without one of
    the branch or tag that the files resemble most.

    Args:
        db: The store.
        files: The files.
        base: The version before the one that they are for.
        compression: How chunks without a base are stored.
        trusted: May have the chunks of `base`; by default the store's own cache.

    Raises:
        InvalidInputError: A file changed while it was read, or cannot be read.
        StoreError: The store could not be written. What was written stays and is found again when
            the command is repeated.
    """
    db.heed_findings()
    writer, buffers = PackWriter(db), Pool(db.config.chunk_size)
    bases = Once(lambda: _resembling(db, files, buffers) if base is None else BaseChunks(base))
    encoder = DifferenceEncoder(db.reader, db.index, trusted or db.cache, compression)
    limit = None if db.store.capabilities.cheap_reads else _MAX_READ_PACKS
    work = _Encoding(db, files, buffers, bases, encoder, Once(partial(db.index.load, limit)))
    if db.store.capabilities.cheap_reads:
        work.look_everywhere()
    else:
        db.index.prepare_all()  # of the base; further packs only where they may save much
    entries, last = _write_files(work, writer)
    written = Written(writer.raw_bytes, writer.stored_bytes, writer.chunks, writer.packs)
    return EncodedFiles(entries, last, written)


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
    work: _Encoding, writer: PackWriter
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


def _check_unchanged(work: _Encoding, chunks: Sequence[Sequence[ChunkId]]) -> None:
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


def _is_same(work: _Encoding, file: SourceFile, ids: Sequence[ChunkId]) -> bool:
    """Whether a file still has the bytes that were read; reads it once more."""
    header = file.raw_header or b""
    if bytes(file.read([Piece(0, len(header), BYTES)], work.buffers)[0]) != header:
        return False

    def hashed(job: tuple[int, list[Piece]]) -> list[ChunkId]:
        return [work.db.hasher(view) for view in file.read(job[1], work.buffers)]

    again = work.db.workers.map(hashed, file_runs([file], work.db.config.chunk_size))
    return [chunk for run in again for chunk in run] == list(ids)


def _write_chunks(work: _Encoding, writer: PackWriter) -> list[list[ChunkId]]:
    """Put the new chunks of all files into packs; returns each file's chunk IDs."""
    db, files = work.db, work.files
    chunks: list[list[ChunkId]] = [[] for _ in files]
    for run, new in _read_runs(work):
        chunks[run.number] += run.chunks
        for read, frames in new:
            writer.add(read.chunk, read.piece.nbytes, frames)
        db.reporter.advanced(Stage.COMMIT, run.nbytes)
    return chunks


def _read_runs(work: _Encoding) -> Iterator[_Encoded]:
    """All chunks of all files in order, with the frames of those that the store lacks."""
    workers, runs = work.db.workers, file_runs(work.files, work.db.config.chunk_size)
    if work.db.store.capabilities.cheap_reads:
        yield from workers.map(lambda job: _encode_run(work, _hash_run(work, job)), runs)
        return
    with work.encoder.ahead() as announce:
        hashed = workers.map(partial(_hash_run, work), runs)
        yield from workers.map(partial(_encode_run, work), _announced(work, hashed, announce))


def _announced(
    work: _Encoding, runs: Iterator[_Run], announce: Callable[[Sequence[ChunkId]], None]
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


def _hash_run(work: _Encoding, job: tuple[int, list[Piece]]) -> _Run:
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


def _encode_run(work: _Encoding, run: _Run) -> _Encoded:
    encoded = []
    for read in run.read:
        frames = _frames(work, work.files[run.number], read)
        if len(run.read) > 1:  # a small chunk would keep the buffer of its whole run otherwise
            frames = [_detached(frame, read.view) for frame in frames]
        work.db.cache.put(read.chunk, read.view)
        encoded.append((read, frames))
    return _Encoded(run, encoded)


def _base(work: _Encoding, file: SourceFile, piece: Piece) -> ChunkId | None:
    """The chunk to store another one as a difference from."""
    return file.base(piece) or work.bases().find(file.path, piece)


def _frames(work: _Encoding, file: SourceFile, read: _ReadChunk) -> list[EncodedFrame]:
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
