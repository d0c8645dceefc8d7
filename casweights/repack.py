"""Repack: store all chunks anew, as the best differences there are now, and drop the old packs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.buffers import uninitialized
from casweights.chains import Bases, ChainEncoder
from casweights.chunks import read_payload
from casweights.events import Stage
from casweights.format import names
from casweights.format.pack import Frame, Location
from casweights.ids import PackId
from casweights.index import ChunkIndex
from casweights.packing import EncodedFrame, PackWriter
from casweights.relatives import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from casweights.config import Compression
    from casweights.database import Database
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId, SnapshotId

_UNWRITTEN = PackId(bytes(32))  # stands for the pack of a frame that only is planned with


@dataclass(frozen=True, slots=True, kw_only=True)
class RepackStats:
    """What `repack` did.

    Attributes:
        packs: Packs of the store now.
        old_packs: Packs that it had.
        nbytes: Bytes of the packs now.
        old_bytes: Bytes that they had.
    """

    packs: int
    old_packs: int
    nbytes: int
    old_bytes: int


class _Job(NamedTuple):
    chunk: ChunkId
    piece: Piece
    base: ChunkId | None


@dataclass(frozen=True, slots=True)
class _Repack:
    """What reading and encoding need to know.

    Attributes:
        db: The store.
        plan: The new frames alone, for the encoder to reckon with.
        encoder: Makes them.
        writer: Writes them.
        done: Chunks that have new frames.
    """

    db: Database
    plan: ChunkIndex
    encoder: ChainEncoder
    writer: PackWriter
    done: set[ChunkId]


def repack(db: Database, *, compression: Compression) -> RepackStats:
    """Store all chunks anew.

    New packs are written and durable before the first old one is deleted, so that a repack that
    fails or is killed loses nothing, and one beside other writers neither. Chunks that no version
    has are kept as they are: a commit that is under way may count on them.

    Raises:
        IntegrityError: Something in the store is damaged; no pack was deleted.
        StoreError: The store could not be written.
    """
    db.index.load()
    old = [info for info in db.store.list(names.PACKS) if info.name not in db.index.damaged]
    plan, writer = ChunkIndex(db.store), PackWriter(db)
    work = _Repack(db, plan, ChainEncoder(db.reader, plan, db.cache, compression), writer, set())
    try:
        _rewrite_versions(work)
        _copy_others(work)
        writer.finish()
    finally:
        writer.close()
    for info in old:
        if info.name not in writer.names:
            db.store.delete(info.name)
    db.index.load()
    db.findings.answer_gone()
    now = list(db.store.list(names.PACKS))
    return RepackStats(
        packs=len(now),
        old_packs=len(old),
        nbytes=sum(info.size for info in now),
        old_bytes=sum(info.size for info in old),
    )


def _rewrite_versions(work: _Repack) -> None:
    db = work.db
    found = {version: _Version.of(db.snapshots.load(version)) for version in db.snapshots.ids()}
    db.reporter.started(Stage.REPACK, sum(version.size for version in found.values()))
    earlier: dict[SnapshotId, None] = {}
    try:
        for version in _in_order(found):
            _rewrite(work, db.snapshots.load(version), earlier)
            earlier[version] = None
            db.reporter.advanced(Stage.REPACK, found[version].size)
    finally:
        db.reporter.finished(Stage.REPACK)


class _Version(NamedTuple):
    """What is remembered of a version, whose chunks are too many to hold those of all."""

    time: datetime
    parents: tuple[SnapshotId, ...]
    size: int

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        return cls(snapshot.time, snapshot.parents, snapshot.size)


def _in_order(versions: dict[SnapshotId, _Version]) -> Iterator[SnapshotId]:
    """All versions, the older first, and none before its parents."""
    graph: TopologicalSorter[SnapshotId] = TopologicalSorter()
    for version in sorted(versions, key=lambda i: (versions[i].time, i)):
        graph.add(version, *(p for p in versions[version].parents if p in versions))
    return iter(graph.static_order())


def _rewrite(work: _Repack, version: Snapshot, earlier: dict[SnapshotId, None]) -> None:
    """Give all chunks of a version that have no new frames theirs."""
    bases = _bases(work, version, earlier)
    jobs: dict[ChunkId, _Job] = {}
    for file in version.files:
        for chunk, piece in file.pieces(work.db.config.chunk_size):
            if chunk not in work.done:
                jobs.setdefault(chunk, _Job(chunk, piece, bases.find(file.path, piece)))
    for job, frames in work.db.workers.map(partial(_encode, work), jobs.values()):
        work.writer.add(job.chunk, job.piece.nbytes, frames)
        work.done.add(job.chunk)
        planned = [_planned(job, frame) for frame in frames]
        work.plan.add(names.pack_name(_UNWRITTEN), 0, planned)


def _planned(job: _Job, frame: EncodedFrame) -> Location:
    size, nbytes = len(frame.payload), job.piece.nbytes
    return Location(
        _UNWRITTEN, Frame(job.chunk, nbytes, frame.encoding, 0, size, frame.checksum, frame.base)
    )


def _bases(work: _Repack, version: Snapshot, earlier: dict[SnapshotId, None]) -> Bases:
    """The parent, or else the nearest relative of what was there before."""
    snapshots = work.db.snapshots
    if version.parents and version.parents[0] in earlier:
        return Bases(snapshots.load(version.parents[0]))
    size = work.db.config.chunk_size
    chunks = {
        (file.path, piece): chunk for file in version.files for chunk, piece in file.pieces(size)
    }
    reader = work.db.reader.near(work.db.cache)

    def read(path: str, piece: Piece) -> memoryview:
        out = uninitialized(piece.nbytes)
        reader.readinto(chunks[path, piece], out)
        return out

    candidates = (Bases(snapshots.load(other)) for other in reversed(earlier))
    return nearest(candidates, list(chunks), read, reader) or Bases()


def _encode(work: _Repack, job: _Job) -> tuple[_Job, list[EncodedFrame]]:
    raw = uninitialized(job.piece.nbytes)
    reader = work.db.reader.near(work.db.cache)  # a new one: the cache has what no old one knows of
    reader.readinto(job.chunk, raw)
    frames = work.encoder.encode(raw, job.piece.dtype, job.base)
    work.db.cache.put(job.chunk, raw)
    return job, frames


def _copy_others(work: _Repack) -> None:
    """Copy the frames of chunks that no version has."""
    for chunk in work.db.index:
        if chunk in work.done:
            continue
        locations = work.db.index.frames(chunk)
        frames = [_copy(work.db, location) for location in locations]
        work.writer.add(chunk, locations[0].frame.raw_size, frames)


def _copy(db: Database, location: Location) -> EncodedFrame:
    frame, payload = location.frame, read_payload(db.store, location)
    return EncodedFrame(frame.encoding, payload, frame.checksum, frame.base)
