"""Maintenance: merge small packs, so that a long history consists of few objects.

Packs are merged by size, as in a log-structured merge tree: eight packs of one level become one of
the next, so each byte is copied a number of times that grows with the logarithm of the history. No
frame is decoded, and no ID changes.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import PACK_TARGET, KiB, MiB
from casweights.database.packs import list_packs, try_read_pack
from casweights.database.writer import PackWriter
from casweights.errors import CasweightsError, NotFoundError
from casweights.events import Stage
from casweights.format.hashing import checksum
from casweights.format.pack import EncodedFrame
from casweights.results import MaintainStats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.database import Database
    from casweights.format.pack import Frame
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectInfo

_FAN_IN = 8  # packs of one level that are merged; a lower number copies bytes more often
_LEVELS = (64 * KiB, 512 * KiB, 4 * MiB, 32 * MiB)  # bytes: the upper ends; larger packs stay
_RECENT_PACKS = 100  # the newest ones stay: subscribers may be about to read them


def maintain(db: Database) -> MaintainStats:
    """Merge small packs.

    A pack is deleted only after all its frames are durable in a pack of a higher generation, so
    commits, transfers, repacks and other maintenance may run at the same time; docs/design/011 has
    the reasoning. Packs with damage stay as they are.

    Args:
        db: The store.

    Raises:
        StoreError: The store could not be read or written. Repeat the call to continue.
    """
    old = _by_age(db)
    recent = {info.name for info in old[max(0, len(old) - _RECENT_PACKS) :]}
    packs, copied = old, 0
    for low, high in pairwise((0, *_LEVELS)):
        level = [p for p in packs if p.name not in recent and low <= p.size < high]
        if len(level) >= _FAN_IN:
            copied += _merge(db, level)
            packs = _by_age(db)
    return MaintainStats(packs=len(packs), old_packs=len(old), copied_bytes=copied)


def _by_age(db: Database) -> list[ObjectInfo]:
    """Return all packs, the oldest first, so that frames of one time are next to each other.

    Those that snapshots carry are left out: the snapshots need their objects.
    """
    packs = list_packs(db.store, carried=False)
    return sorted(packs, key=lambda info: (info.created, info.name))


def _merge(db: Database, level: Sequence[ObjectInfo]) -> int:
    """Merge packs of one level, as many as fit into one; return the number of bytes copied."""
    copied = 0
    db.reporter.started(Stage.MAINTAIN, sum(info.size for info in level))
    try:
        for group in _groups(level):
            read = [pack for pack in db.workers.map(partial(_read, db), group) if pack is not None]
            if len(read) > 1:
                copied += _write(db, read)
            db.reporter.advanced(Stage.MAINTAIN, sum(info.size for info in group))
    finally:
        db.reporter.finished(Stage.MAINTAIN)
    return copied


def _groups(level: Sequence[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    """Divide packs into consecutive groups of at most the size of one pack."""
    group: list[ObjectInfo] = []
    size = 0
    for info in level:
        if group and size + info.size > PACK_TARGET:
            yield group
            group, size = [], 0
        group.append(info)
        size += info.size
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


def _write(db: Database, packs: Sequence[_Pack]) -> int:
    """Write the frames of some packs as one, and delete the packs; return the bytes copied."""
    chunks: dict[ChunkId, tuple[int, list[EncodedFrame]]] = {}
    copied = [pack for pack in packs if _add(chunks, pack)]
    writer = PackWriter(db, 1 + max(pack.generation for pack in packs))
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
