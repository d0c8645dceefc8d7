"""Stats: count the versions, packs and chunks of a store."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.database.packs import list_packs
from casweights.database.segments import Segment, list_segments, open_segments
from casweights.errors import IntegrityError
from casweights.format import names
from casweights.format.codecs import Encoding
from casweights.results import StoreStats, VersionStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.database import Database
    from casweights.format.pack import Frame
    from casweights.ids import ChunkId


def stats(db: Database) -> StoreStats:
    """Count the versions, packs, chunks and bytes of a store.

    Raises:
        IntegrityError: A snapshot is damaged.
    """
    db.index.load()
    packs = list(list_packs(db.store, carried=False))
    snapshots = list(db.store.list(names.SNAPSHOTS))
    archives = list(db.snapshots.archives.infos())
    carried = _carried_bytes(db)
    found = open_segments(db.store, list_segments(db.store))
    segments = [segment for _, segment in found if isinstance(segment, Segment)]
    structure: set[ChunkId] = set()
    versions = tuple(_version_stats(db, structure))
    frames = [
        location.frame
        for chunk in db.index
        for location in db.index.frames(chunk)
        if chunk not in structure
    ]
    raw_sizes = {frame.chunk: frame.raw_size for frame in frames}
    return StoreStats(
        versions=versions,
        packs=len(packs) + len(carried),
        pack_bytes=sum(info.size for info in packs) + sum(carried),
        snapshot_bytes=sum(info.size for info in (*snapshots, *archives)) - sum(carried),
        segments=len(segments),
        segment_bytes=sum(segment.info.size for segment in segments),
        segment_rewrites=max((segment.index.generation for segment in segments), default=0),
        pack_rewrites=max((pack.generation for pack in db.index.contents()), default=0),
        chunks=len(raw_sizes),
        chunk_bytes=sum(raw_sizes.values()),
        encodings=dict(Counter(_encoding_name(frame) for frame in frames)),
        archives=len(archives),
    )


def _carried_bytes(db: Database) -> list[int]:
    """Return the bytes of all frames in each snapshot's object that carries some."""
    packs = (p for p in db.index.contents() if p.info.name.startswith(names.SNAPSHOTS))
    sizes = (sum(location.frame.size for location in pack.locations) for pack in packs)
    return [size for size in sizes if size]


def _encoding_name(frame: Frame) -> str:
    try:
        return Encoding(frame.encoding).name.lower()
    except ValueError:
        return f"unknown ({frame.encoding})"


def _version_stats(db: Database, structure: set[ChunkId]) -> Iterator[VersionStats]:
    """Count each version; adds the chunks of headers and of lists of chunks to `structure`."""
    seen: set[ChunkId] = set()
    times = {snapshot_id: db.snapshots.load(snapshot_id).time for snapshot_id in db.snapshots.ids()}
    for snapshot_id in sorted(times, key=lambda i: (times[i], i)):
        # Loaded a second time: the manifests of all versions together may not fit in memory.
        version = db.snapshots.load(snapshot_id)
        structure.update(version.structure())
        chunks: dict[ChunkId, int] = {}
        with suppress(IntegrityError):  # its list of chunks is lost, which `verify` reports
            chunks = {chunk: piece.nbytes for chunk, piece in version.pieces()}
        new = chunks.keys() - seen
        seen |= new
        costs = [cost for chunk in chunks if (cost := db.index.cost(chunk)) is not None]
        yield VersionStats(
            id=version.id,
            nbytes=version.size,
            new_bytes=sum(chunks[chunk] for chunk in new),
            stored_bytes=sum(loc.frame.size for chunk in new for loc in db.index.frames(chunk)),
            read_bytes=sum(cost.nbytes for cost in costs),
            longest_chain=max((cost.links for cost in costs), default=0),
        )
