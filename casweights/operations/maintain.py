"""Maintenance: merge small objects, so that a long history consists of few.

Old moves leave the logs of branches, and old versions move into archives, see `archiving`.

Packs are merged by size, as in a log-structured merge tree: eight packs of one level become one of
the next, so each byte is copied a number of times that grows with the logarithm of the history. No
frame is decoded, and no ID changes. Segments then cover the packs.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import PACK_FRAMES, PACK_TARGET, KiB, MiB
from casweights.database.packs import list_packs, try_read_pack
from casweights.database.segment_writer import SegmentWriter
from casweights.database.writer import PackWriter
from casweights.errors import CasweightsError, NotFoundError
from casweights.events import Stage
from casweights.format import names
from casweights.format.hashing import checksum
from casweights.format.pack import EncodedFrame
from casweights.operations.archiving import RECENT_VERSIONS, archive_old, merge_archives
from casweights.results import MaintainStats
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.database import Database
    from casweights.database.segment_writer import KeptSegments
    from casweights.format.pack import Frame, SealedPack
    from casweights.ids import ChunkId

_FAN_IN = 8  # packs of one level that are merged; a lower number copies bytes more often
_LEVELS = (64 * KiB, 512 * KiB, 4 * MiB, 32 * MiB)  # bytes: the upper ends; larger packs stay
_MANY_FRAMES = PACK_FRAMES // 2  # packs with more stay, as two of them may not fit into one
_RECENT_PACKS = 16  # the newest ones stay: subscribers may be about to read them


def maintain(db: Database) -> MaintainStats:
    """Move old versions into archives, merge small objects, and write segments.

    By segments, chunks are found in the packs that are left without reading all their indexes.

    A pack is deleted only after all its frames are durable in a pack of a higher generation, so
    commits, transfers, repacks and other maintenance may run at the same time; docs/design/011 has
    the reasoning. Packs with damage stay as they are. Damaged segments are replaced.

    Args:
        db: The store.

    Raises:
        StoreError: The store could not be read or written. Repeat the call to continue.
    """
    before = len(_by_age(db))
    db.refs.trim(RECENT_VERSIONS)
    archived, copied = archive_old(db), merge_archives(db)
    old = _by_age(db)
    segments = _open_segments(db)
    recent = _newest(old)
    full = {
        names.pack_name(pack)
        for pack, rows in segments.covered_packs.items()
        if rows > _MANY_FRAMES
    }
    packs = old
    for low, high in pairwise((0, *_LEVELS)):
        stay = recent | full
        level = [p for p in packs if p.name not in stay and low <= p.size < high]
        if len(level) >= _FAN_IN:
            copied += _merge(db, level, full)
            packs = _by_age(db)
    kept = _keep_segments(db, segments, recent)
    return MaintainStats(
        packs=len(packs),
        old_packs=before,
        copied_bytes=copied,
        archived=archived,
        archives=len(list(db.snapshots.archives.infos())),
        segments=kept.segments,
        segment_bytes=kept.written_bytes,
    )


def _by_age(db: Database) -> list[ObjectInfo]:
    """Return all packs, the oldest first, so that frames of one time are next to each other.

    Those that snapshots carry are left out: the snapshots need their objects.
    """
    packs = list_packs(db.store, carried=False)
    return sorted(packs, key=lambda info: (info.created, info.name))


def _newest(infos: Sequence[ObjectInfo]) -> set[str]:
    """Return the names of those that stay as they are, given objects by age."""
    return {info.name for info in infos[max(0, len(infos) - _RECENT_PACKS) :]}


def _keep_segments(db: Database, segments: SegmentWriter, recent: set[str]) -> KeptSegments:
    """Cover all packs with segments, but for the recent ones; and merge segments."""
    infos = sorted(list_packs(db.store), key=lambda info: info.created)
    snapshots = [info for info in infos if info.name.startswith(names.SNAPSHOTS)]
    stay = recent | _newest(snapshots)
    known = {names.pack_of(info.name): info for info in infos}
    kept = segments.run(known, [pack for pack, info in known.items() if info.name not in stay])
    db.findings.answer_gone()
    return kept


def _open_segments(db: Database) -> SegmentWriter:
    """Open the segments, and delete the damaged ones with the findings about them."""
    suspects = db.findings.load()
    writer = SegmentWriter(db.store, db.workers, {suspect.pack for suspect in suspects})
    db.findings.answer([suspect for suspect in suspects if suspect.pack in writer.damaged])
    return writer


def _merge(db: Database, level: Sequence[ObjectInfo], full: set[str]) -> int:
    """Merge packs of one level, as many as fit into one; return the number of bytes copied.

    Packs with many frames are added to `full`.
    """
    copied = 0
    db.reporter.started(Stage.MAINTAIN, sum(info.size for info in level))
    try:
        for group in _groups(_read_all(db, level)):
            full.update(pack.info.name for pack in group if len(pack.frames) > _MANY_FRAMES)
            if len(group) > 1:
                copied += _write(db, group, full)
    finally:
        db.reporter.finished(Stage.MAINTAIN)
    return copied


def _read_all(db: Database, level: Sequence[ObjectInfo]) -> Iterator[_Pack]:
    """Yield the sound ones of these packs."""
    for info, pack in zip(level, db.workers.map(partial(_read, db), level), strict=True):
        db.reporter.advanced(Stage.MAINTAIN, info.size)
        if pack is not None:
            yield pack


def _groups(packs: Iterable[_Pack]) -> Iterator[list[_Pack]]:
    """Divide packs into consecutive groups of at most the size of one pack."""
    group: list[_Pack] = []
    size = frames = 0
    for pack in packs:
        size, frames = size + pack.info.size, frames + len(pack.frames)
        if group and (size > PACK_TARGET or frames > PACK_FRAMES):
            yield group
            group, size, frames = [], pack.info.size, len(pack.frames)
        group.append(pack)
    if group:
        yield group


class _Pack(NamedTuple):
    """A pack in memory, with the payload of each frame."""

    info: ObjectInfo
    generation: int
    frames: list[tuple[Frame, memoryview]]


def _read(db: Database, info: ObjectInfo) -> _Pack | None:
    """Read a pack; None if it is damaged or gone, which is for `verify` to report."""
    contents = try_read_pack(db.store, info)
    if isinstance(contents, CasweightsError) or not contents.locations:
        return None
    try:
        data = memoryview(db.store.get(info.name))
    except NotFoundError:  # other maintenance was faster
        return None
    frames = [
        (location.frame, data[location.frame.offset :][: location.frame.size])
        for location in contents.locations
    ]
    if any(checksum(payload) != frame.checksum for frame, payload in frames):
        return None
    return _Pack(info, contents.generation, frames)


class _MergedPacks(PackWriter):
    """A writer after which the index knows those frames whose chunks it knew before.

    Args:
        database: The store to write to.
        generation: Generation of the packs.
        full: Receives the names of packs with many frames.
    """

    def __init__(self, database: Database, generation: int, full: set[str]) -> None:
        super().__init__(database, generation)
        self._index = database.index
        self._merged = generation
        self._full = full

    def written(self, pack: SealedPack) -> None:
        self._index.add_moved(ObjectInfo(pack.name, pack.size), pack.locations, self._merged)
        self.names.add(pack.name)
        if len(pack.frames) > _MANY_FRAMES:
            self._full.add(pack.name)


def _write(db: Database, packs: Sequence[_Pack], full: set[str]) -> int:
    """Write the frames of some packs as one, and delete the packs; return the bytes copied."""
    chunks: dict[ChunkId, tuple[int, list[EncodedFrame]]] = {}
    copied = [pack for pack in packs if _add(chunks, pack)]
    writer = _MergedPacks(db, 1 + max(pack.generation for pack in packs), full)
    try:
        for chunk, (raw_size, frames) in chunks.items():
            writer.add(chunk, raw_size, frames)
        writer.finish()
    finally:
        writer.close()
    replaced = [pack.info.name for pack in copied if pack.info.name not in writer.names]
    db.store.delete_all(replaced)
    db.index.drop(replaced)
    return writer.stored_bytes


def _add(chunks: dict[ChunkId, tuple[int, list[EncodedFrame]]], pack: _Pack) -> bool:
    """Add the frames of a pack, each once; False if only a forged store can have them."""
    if any(chunks.get(f.chunk, (f.raw_size,))[0] != f.raw_size for f, _ in pack.frames):
        return False
    for frame, payload in pack.frames:
        frames = chunks.setdefault(frame.chunk, (frame.raw_size, []))[1]
        new = EncodedFrame(frame.encoding, payload, frame.checksum, frame.base)
        if not any(_is_same(new, other) for other in frames):
            frames.append(new)
    return True


def _is_same(one: EncodedFrame, other: EncodedFrame) -> bool:
    facts = [(f.encoding, f.base, f.checksum, len(f.payload)) for f in (one, other)]
    return facts[0] == facts[1]
