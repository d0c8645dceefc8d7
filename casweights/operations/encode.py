"""Encode: read and hash files, and write the chunks that the store lacks.

Each run of chunks is read and hashed on a worker; chunks that the store contains end there. The
others are encoded on a worker, as differences if they have a base, and added to packs in the order
of the files.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.content.files import file_runs
from casweights.database.read_plan import tiny_packs
from casweights.database.writer import PackWriter
from casweights.errors import ErrorCode, IntegrityError
from casweights.events import Stage
from casweights.format.file_entry import FileEntry, stored_chunks
from casweights.format.layout import BYTES, Piece, runs
from casweights.operations.base_chunks import structure_places
from casweights.operations.base_search import find_bases
from casweights.operations.differences import DifferenceEncoder, growth
from casweights.operations.encoded_files import EncodedFiles, Written
from casweights.operations.lineage import Lineage
from casweights.operations.looking import PackSearch
from casweights.operations.sampling import Sampling, is_sampled
from casweights.operations.shortcuts import Schedule
from casweights.stores.optional import ahead
from casweights.system.buffers import Pool
from casweights.system.clocks import Moment
from casweights.system.threads import Once

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from casweights.config import Compression
    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.reader import TrustedChunks
    from casweights.format.lineage import Origin
    from casweights.format.manifest import Snapshot
    from casweights.format.pack import EncodedFrame
    from casweights.ids import ChunkId
    from casweights.operations.bases import Bases
    from casweights.operations.derivations import Derivation


_MAX_ATTEMPTS = 3  # others may delete packs again and again
_LOOKAHEAD = 16  # runs that are read before the first is encoded, while their bases are fetched


class _Run(NamedTuple):
    """Neighbouring chunks of a file, hashed.

    Attributes:
        number: The file's position in the list of files.
        chunks: IDs of all its chunks.
        nbytes: Their size in bytes.
        read: The chunks that the store may lack.
    """

    number: int
    chunks: list[ChunkId]
    nbytes: int
    read: list[_ReadChunk]


class _ReadChunk(NamedTuple):
    """A chunk, its place in the file, and its bytes."""

    chunk: ChunkId
    piece: Piece
    view: memoryview


class _Encoded(NamedTuple):
    """A run, and the frames to store for those of its chunks that the store may lack."""

    run: _Run
    frames: list[tuple[_ReadChunk, list[EncodedFrame]]]


@dataclass(frozen=True, slots=True)
class _Encoding:
    """The parts of a running encoding.

    Attributes:
        db: The store.
        files: The files.
        buffers: Memory for the chunks that are read.
        bases: The chunks that new ones are encoded as differences from, found at the first use.
        encoder: Encodes the new chunks.
        search: Loads the indexes of packs that are not known yet.
        parent: The parent of the new version; None if it has no parent.
        base: The version to build on before the parent; None for none.
        sampling: Takes samples of the chunks; None for no signature.
        made: Chunks whose new frames are made from others.
        foreign: Chunks of other versions than the parent that are bases of new frames.
        repeats: Set while the store contains what is read. Live tensors are then hashed in place,
            not copied. Never set with a cache in memory, which needs the copies.
    """

    db: Database
    files: Sequence[SourceFile]
    buffers: Pool
    bases: Once[Bases]
    encoder: DifferenceEncoder
    search: PackSearch
    parent: Snapshot | None
    base: Snapshot | None
    sampling: Sampling | None
    made: set[ChunkId] = field(default_factory=set)
    foreign: set[ChunkId] = field(default_factory=set)
    repeats: threading.Event = field(default_factory=threading.Event)

    def reached(self) -> Collection[ChunkId]:
        """Return the chunks of the parent, which nobody can remove."""
        if self.parent is None:
            return ()
        bases = self.bases()
        return (bases.first if self.base is None else bases.second).chunks()


def encode_files(
    db: Database,
    files: Sequence[SourceFile],
    *,
    parent: Snapshot | None,
    compression: Compression,
    base: Snapshot | None = None,
    trusted: TrustedChunks | None = None,
    begins: bool = False,
    standalone: bool = False,
) -> EncodedFiles:
    """Read and encode files, and write all packs but the last.

    Chunks are stored as differences from the chunks at the same places of `base`, then of `parent`,
    or else of the versions that the files resemble most.

    Args:
        db: The store.
        files: The files.
        parent: The parent of the version that the files are for; None if it has no parent.
        compression: How chunks without a base are stored.
        base: A version to build on before the parent; None for none.
        trusted: May hold the chunks of `parent` in memory; by default the store's own cache.
        begins: Whether the version is the first of its branch.
        standalone: Whether no chunk may be a function of others; never if the store says so.

    Raises:
        InvalidInputError: A file changed while it was read, or cannot be read.
        IntegrityError: The store lost reused chunks at every attempt.
        StoreError: The store could not be written. Repeating the call uses the packs that were.
    """
    db.heed_findings()
    if base is not None and parent is not None and base.id == parent.id:
        base = None
    number = 1 if parent is None else parent.number + 1
    is_plain = standalone or db.config.standalone
    samples = is_sampled(number, begins=begins) and db.signatures.are_kept()
    encode = partial(_encode, db, files, parent, base, compression, trusted)
    for _ in range(_MAX_ATTEMPTS):
        if (encoded := encode(is_plain=is_plain, samples=samples)) is not None:
            return encoded
    raise IntegrityError(
        ErrorCode.MISSING_CHUNK,
        "the store lost chunks at every attempt to make a version of them: repeat the command, "
        "which stores them again",
    )


def _encode(
    db: Database,
    files: Sequence[SourceFile],
    parent: Snapshot | None,
    base: Snapshot | None,
    compression: Compression,
    trusted: TrustedChunks | None,
    *,
    is_plain: bool,
    samples: bool,
) -> EncodedFiles | None:
    """Encode files once; None if the store lost a chunk at the same time that they reuse."""
    hold, seen = db.index.hold(), Moment.now()
    for known in (base, parent):
        if known is not None:
            db.snapshots.locate(known.id)
    writer, buffers = PackWriter(db, only_new=True), Pool(db.config.chunk_size)
    sampling = Sampling(files, buffers) if samples else None
    bases = Once(lambda: find_bases(db, files, parent, sampling, buffers, base=base))
    encoder = DifferenceEncoder(
        db.reader,
        db.index,
        trusted or db.cache,
        db.snapshots.structure,
        compression,
        Schedule(1 if parent is None else parent.number + 1, db.index.pack_size),
        Once(lambda: growth(bases().first, db.index)),
        is_plain=is_plain,
    )
    is_first = base is None and parent is None
    search = PackSearch(db, sum(file.size for file in files), is_first=is_first)
    work = _Encoding(db, files, buffers, bases, encoder, search, parent, base, sampling)
    with ahead(db.store) as fetch:
        fetch(tiny_packs(db.store, db.index))
        db.index.prepare_all()  # only the base's packs; others only if they may save much
        encoded = _write_files(work, writer)
    if not search.are_there(_relied_on(work, writer, encoded.files), hold):
        return None
    signature = None if sampling is None else sampling.signature()
    lineage = _lineage(work, encoded) if writer.chunks or not is_first else ()
    return replace(encoded, hold=hold, seen=seen, signature=signature, lineage=lineage)


def _relied_on(work: _Encoding, writer: PackWriter, entries: Sequence[FileEntry]) -> list[ChunkId]:
    """Return the chunks of a version that are neither in its base nor written for it."""
    reached = work.reached()
    chunks = stored_chunks(entries, work.db.config).keys() | work.foreign
    return [chunk for chunk in chunks if chunk not in reached and not writer.has(chunk)]


def _lineage(work: _Encoding, encoded: EncodedFiles) -> Sequence[Origin]:
    """Return the versions that the frames of some files were made from."""
    lineage = Lineage(work.bases(), None if work.parent is None else work.parent.id)
    if lineage.is_implied:
        return ()
    for file, entry in zip(work.files, encoded.files, strict=True):
        pieces = file.pieces(work.db.config.chunk_size)
        for chunk, piece in zip(entry.chunks, pieces, strict=True):
            built_on = _all_bases(work, file, piece) if chunk in work.made else ()
            lineage.count(chunk, piece.nbytes, built_on)
    return lineage.origins()


def _write_files(work: _Encoding, writer: PackWriter) -> EncodedFiles:
    """Write the chunks of all files, except those of an only pack, which is returned."""
    db, files = work.db, work.files
    db.reporter.started(Stage.COMMIT, sum(file.size for file in files))
    try:
        chunks = _write_chunks(work, writer)
        written = Written(writer.raw_bytes, writer.stored_bytes, writer.chunks)
        entries = tuple(
            FileEntry(file.path, file.size, file.raw_header, file.header, tuple(ids))
            for file, ids in zip(files, chunks, strict=True)
        )
        _write_structure(work, writer, entries)
        last = writer.last()
        _check_unchanged(work, chunks)
    finally:
        writer.close()
        db.reporter.finished(Stage.COMMIT)
    return EncodedFiles(entries, last, written._replace(packs=writer.packs))


def _write_structure(work: _Encoding, writer: PackWriter, entries: Sequence[FileEntry]) -> None:
    """Add the structure chunks that the store lacks to packs."""
    rows = (entry.row(work.db.config) for entry in entries)
    sizes = (size for row in rows for _, size in row.structure(work.db.config))
    work.db.snapshots.make_room(sum(sizes))
    for entry in entries:
        places = structure_places(entry.row(work.db.config))
        structure = entry.structure(work.db.config)
        for place, (chunk, content) in zip(places, structure, strict=True):
            if chunk not in work.db.index:
                base = work.bases().find_structure(entry.path, place)
                frames = work.encoder.encode_structure(memoryview(content), base)
                writer.add(chunk, len(content), frames)
            work.db.snapshots.structure.put(chunk, memoryview(content))


def _check_unchanged(work: _Encoding, chunks: Sequence[Sequence[ChunkId]]) -> None:
    """Check that all files are unchanged since reading began.

    Raises:
        InvalidInputError: A file has changed, or a new one has appeared in the directory.
    """
    for file, ids in zip(work.files, chunks, strict=True):
        if not file.check_unchanged() and not _is_same(work, file, ids):
            raise file.changed()
    for tree in {id(file.tree): file.tree for file in work.files}.values():
        if tree is not None:
            tree.check_complete()


def _is_same(work: _Encoding, file: SourceFile, ids: Sequence[ChunkId]) -> bool:
    """Whether a file still contains the bytes that were read; reads it a second time."""
    header = file.raw_header or b""
    if bytes(file.read([Piece(0, len(header), BYTES)], work.buffers)[0]) != header:
        return False

    def hashed(job: tuple[int, list[Piece]]) -> list[ChunkId]:
        return [work.db.hasher(view) for view in file.read(job[1], work.buffers)]

    again = work.db.workers.map(hashed, file_runs([file], work.db.config.chunk_size))
    return [chunk for run in again for chunk in run] == list(ids)


def _write_chunks(work: _Encoding, writer: PackWriter) -> list[list[ChunkId]]:
    """Add the new chunks of all files to packs; return each file's chunk IDs."""
    db, files = work.db, work.files
    chunks: list[list[ChunkId]] = [[] for _ in files]
    for run, new in _read_runs(work):
        chunks[run.number] += run.chunks
        for read, frames in new:
            if any(frame.bases for frame in frames):
                work.made.add(read.chunk)
            writer.add(read.chunk, read.piece.nbytes, frames)
        db.reporter.advanced(Stage.COMMIT, run.nbytes)
    return chunks


def _read_runs(work: _Encoding) -> Iterator[_Encoded]:
    """Yield all chunks of all files in order, with the frames of those that the store lacks."""
    workers, runs = work.db.workers, file_runs(work.files, work.db.config.chunk_size)
    if work.db.store.capabilities.cheap_reads:  # reading a base takes no longer than fetching ahead
        yield from workers.map(lambda job: _encode_run(work, _hash_run(work, job)), runs)
        return
    with work.encoder.ahead() as announce:
        hashed = workers.map(partial(_hash_run, work), runs)
        yield from workers.map(partial(_encode_run, work), _announced(work, hashed, announce))


def _announced(
    work: _Encoding, runs: Iterator[_Run], announce: Callable[[Sequence[ChunkId]], None]
) -> Iterator[_Run]:
    """Yield the runs, delayed so that the bases they need are fetched before they are encoded."""
    waiting: deque[_Run] = deque()
    for run in runs:
        changed = [
            base
            for chunk, piece, _ in run.read
            if chunk not in work.db.index
            for base in _all_bases(work, work.files[run.number], piece)
        ]
        announce(changed)
        waiting.append(run)
        # Runs without bases need not wait.
        while len(waiting) > (_LOOKAHEAD if changed else 0):
            yield waiting.popleft()
    yield from waiting


def _hash_run(work: _Encoding, job: tuple[int, list[Piece]]) -> _Run:
    """Hash a run of a file, and sample it."""
    run = _hashed(work, job)
    if work.sampling is not None:
        views = {read.piece.offset: read.view for read in run.read}
        work.sampling.take(work.files[run.number], job[1], views)
    return run


def _hashed(work: _Encoding, job: tuple[int, list[Piece]]) -> _Run:
    """Hash a run of a file, reading as little of it as possible.

    Chunks whose IDs the file remembers and the store contains are not read. Where the store
    contained what was read last, live tensors are hashed in place first. Everything else is read
    into buffers, which stay valid until the chunks are encoded.
    """
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
    file = work.files[run.number]
    if new := [read.chunk for read in run.read if _is_new(work, file, read)]:
        work.search.for_new_place(new)
    for read in run.read:
        frames = _frames(work, file, read)
        if len(run.read) > 1:  # otherwise a small raw chunk would keep its whole run's buffer
            frames = [frame.detached(read.view) for frame in frames]
        work.db.cache.put(read.chunk, read.view)
        encoded.append((read, frames))
    return _Encoded(run, encoded)


def _base(work: _Encoding, file: SourceFile, piece: Piece) -> ChunkId | None:
    """Return the chunk from which the one at this place is stored as a difference, if any."""
    return file.base(piece) or work.bases().find(file.path, piece)


def _derivation(
    work: _Encoding, file: SourceFile, piece: Piece, base: ChunkId | None
) -> Derivation | None:
    """Return what the chunk at this place may be made from, if it may be a function of others."""
    return None if work.encoder.is_plain else work.bases().derivation(file.path, piece, base)


def _all_bases(work: _Encoding, file: SourceFile, piece: Piece) -> Iterable[ChunkId]:
    """Return all chunks that may be read to encode the one at this place."""
    base = _base(work, file, piece)
    made = _derivation(work, file, piece, base)
    return [*(() if base is None else (base,)), *(() if made is None else made.chunks)]


def _is_new(work: _Encoding, file: SourceFile, read: _ReadChunk) -> bool:
    """Whether a chunk is unknown and at a place that the base does not have."""
    if read.chunk in work.db.index or _base(work, file, read.piece) is not None:
        return False
    return not work.bases().has_place(file.path, read.piece)


def _frames(work: _Encoding, file: SourceFile, read: _ReadChunk) -> list[EncodedFrame]:
    """Return the frames to store for a chunk; an empty list if the store contains it.

    The index may not know all packs yet. The others are searched before a chunk is stored that has
    a large frame, and before a pack is full: copies elsewhere may save these bytes.
    """
    index, (chunk, piece, raw) = work.db.index, read
    if chunk in index:
        return []
    base = _base(work, file, piece)
    made = _derivation(work, file, piece, base)
    if made is not None:
        nearest = base or work.bases().nearest(file.path, piece)
        frames = work.encoder.encode_derived(raw, piece, made, nearest)
    else:
        frames = work.encoder.encode(raw, piece, base)
    if base is not None or work.bases().has_place(file.path, piece):
        work.search.for_frames(chunk, frames, piece.nbytes)
    if chunk in index:
        return []
    reached = work.reached()
    bases = (base for frame in frames for base in frame.bases)
    work.foreign.update(base for base in bases if base not in reached)
    return frames
