"""Archiving: old versions share objects, and their frames move into packs.

The snapshot object of an old version is replaced by a bare copy in an archive. Frames that it
carries are copied into a pack first. docs/design/030 has the reasoning.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import PACK_FRAMES, PACK_TARGET, MiB
from casweights.errors import IntegrityError, NotFoundError
from casweights.events import Stage
from casweights.format import names
from casweights.format.archive import build_archive, is_intact, parse_archive
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.names import parse_id
from casweights.format.snapshot import decode_snapshot, encode_snapshot
from casweights.ids import ArchiveId, SnapshotId
from casweights.operations.archive_check import check_member, read_nothing
from casweights.operations.merging import (
    FrameCopies,
    are_enough,
    by_age,
    groups,
    merge_levels,
    payloads,
)
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from casweights.database import Database
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import PackId
    from casweights.operations.merging import Payloads
    from casweights.stores.base import ObjectInfo

# Versions that keep an object of their own: their readers need no archive. A chunk is rebuilt from
# at most as many frames, most of which the newest versions carry then.
RECENT_VERSIONS = 64
_READERS = 16  # threads that wait for the network
_READ_AHEAD = 64 * MiB  # bytes of objects in memory that were not looked at yet
_MAX_OBJECT = 1 << 30  # bytes: carried frames, a manifest and a pack table


def archive_old(db: Database) -> int:
    """Move all versions into archives, except those that the log of a branch names.

    Returns:
        The number of versions that were moved.
    """
    listed = by_age(_snapshot_objects(db))  # before the moves, which are written later
    recent = set(map(names.snapshot_name, db.refs.logged()))
    old = [info for info in listed if info.name not in recent]
    return len(archive(db, old)) if are_enough(old) else 0


def archive_carrying(db: Database) -> None:
    """Move all versions into archives whose objects carry frames, so that packs hold all frames."""
    db.index.load()
    carrying = {pack.info.name for pack in db.index.contents() if pack.locations}
    archive(db, by_age(info for info in _snapshot_objects(db) if info.name in carrying))


def _snapshot_objects(db: Database) -> Iterable[ObjectInfo]:
    """Yield the objects of versions, without whole moves, which trimming a log takes out of it."""
    for info in db.objects.list(names.SNAPSHOTS):
        with suppress(IntegrityError):
            parse_id(SnapshotId, names.SNAPSHOTS, info.name)
            yield info


def archive(db: Database, infos: Sequence[ObjectInfo]) -> list[str]:
    """Move versions from objects of their own into archives, and the frames in them into packs.

    The objects are deleted after everything in them is durable elsewhere. Those that are damaged
    or gone are passed over.

    Args:
        db: The store.
        infos: The snapshot objects, oldest first.

    Returns:
        The names of the objects that were deleted.
    """
    if not infos:
        return []
    work = _Archiving(db)
    largest = max((info.size for info in infos), default=0)
    threads = max(1, min(_READERS, _READ_AHEAD // (2 * largest + 1)))
    db.reporter.started(Stage.MAINTAIN, sum(info.size for info in infos))
    try:
        with Workers(threads) as readers:
            versions = readers.map(partial(_read, db), infos)
            for info, version in zip(infos, versions, strict=True):
                if version is not None:
                    work.add(version)
                db.reporter.advanced(Stage.MAINTAIN, info.size)
        return work.finish()
    finally:
        db.reporter.finished(Stage.MAINTAIN)


class _Version(NamedTuple):
    """A version in memory, with the frames that its object carries."""

    stored: StoredSnapshot
    frames: Payloads


def _read(db: Database, info: ObjectInfo) -> _Version | None:
    """Read a snapshot object; None if it is damaged or gone, which is for `verify` to report."""
    snapshot = parse_id(SnapshotId, names.SNAPSHOTS, info.name)
    try:
        data = db.objects.read(info.name, _MAX_OBJECT)
        stored = decode_snapshot(data, snapshot, info.name, read_nothing)
    except (NotFoundError, IntegrityError):
        return None
    frames = payloads(memoryview(data), stored.frames)
    return None if frames is None else _Version(stored, frames)


class _Archiving:
    """Moves versions into archives; call `add` for each, the oldest first, and then `finish`."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._group: list[_Version] = []  # versions whose frames fit in one pack
        self._frames, self._frame_bytes = 0, PREFIX_SIZE  # of the group
        self._into: dict[PackId, PackId] = {}
        self._bare: dict[SnapshotId, bytes] = {}  # versions whose frames are in packs
        self._bare_bytes = 0
        self._moved: list[str] = []

    def add(self, version: _Version) -> None:
        """Add a version; writes the earlier ones if there are many."""
        frames, nbytes = len(version.frames), sum(frame.size for frame, _ in version.frames)
        if self._frames + frames > PACK_FRAMES or self._frame_bytes + nbytes > PACK_TARGET:
            self._write_frames()
        self._group.append(version)
        self._frames += frames
        self._frame_bytes += nbytes

    def _write_frames(self) -> None:
        """Write the frames of the group, which are durable then, and make its bare copies."""
        group, self._group = self._group, []
        self._frames, self._frame_bytes = 0, PREFIX_SIZE
        for version in self._copied(group):
            content = b"".join(encode_snapshot(version.stored.archived(self._into)))
            if self._bare_bytes + len(content) > PACK_TARGET:
                self._write_archive()
            self._bare[version.stored.snapshot.id] = content
            self._bare_bytes += len(content)

    def _copied(self, group: Sequence[_Version]) -> list[_Version]:
        """Copy the frames of versions into a pack; return the versions that need theirs no more."""
        copies = FrameCopies()
        copied = [version for version in group if copies.add(version.frames)]
        writer = copies.write(self._db, 1)  # the frames that snapshots carry have generation 0
        if writer is None:
            return []
        if len(writer.names) == 1:
            pack = names.pack_of(*writer.names)
            carried = (version.stored.carried for version in copied)
            self._into |= {old: pack for old in carried if old is not None}
        return copied

    def _write_archive(self) -> None:
        """Write an archive of the bare copies, and then delete the objects that they replace."""
        bare, self._bare, self._bare_bytes = self._bare, {}, 0
        if bare and write_archive(self._db, bare, 1):
            replaced = list(map(names.snapshot_name, bare))
            self._db.objects.delete_all(replaced)
            self._db.index.drop(replaced)
            self._moved += replaced

    def finish(self) -> list[str]:
        """Move the last versions; return the names of all objects that were deleted."""
        self._write_frames()
        self._write_archive()
        return self._moved


def write_archive(db: Database, snapshots: Mapping[SnapshotId, bytes], generation: int) -> bool:
    """Write an archive; return whether all readers find its versions there from now on."""
    sealed = build_archive(snapshots, generation)
    if not db.store.put(sealed.name, sealed.parts):
        # It was there, and may be damaged. A copy in a cache proves nothing.
        db.store.forget(sealed.name)
        with suppress(NotFoundError):
            return is_intact(db.store.get(sealed.name), sealed.id)
        return False  # other maintenance has merged it
    return db.snapshots.archives.wait_until_listed(sealed.name)


def merge_archives(db: Database) -> int:
    """Merge small archives; return the number of bytes written."""
    archives = db.snapshots.archives
    written = merge_levels(lambda: list(archives.infos()), partial(_merge_level, db))
    archives.refresh()
    return written


def _merge_level(db: Database, level: Sequence[ObjectInfo]) -> int:
    return sum(_merge(db, group, least=2) for group in groups(level))


def replace_damaged_archives(db: Database) -> None:
    """Replace each damaged archive of whose damaged versions the store has sound copies."""
    for info in db.snapshots.archives.infos():
        with suppress(NotFoundError):
            if not is_intact(db.store.get(info.name), _id_of(info)):
                _merge(db, [info])


def _merge(db: Database, group: Sequence[ObjectInfo], least: int = 1) -> int:
    """Write the versions of some archives as one, and delete the archives.

    Archives that must stay are left out, and nothing happens if fewer than `least` are left.

    Returns:
        The number of bytes written.
    """
    snapshots: dict[SnapshotId, bytes] = {}
    merged, generation = [], 1
    for info in group:
        found = _read_archive(db, info)
        if found is not None:
            merged.append(info.name)
            generation = max(generation, 1 + found.generation)
            snapshots |= found.snapshots  # of two copies, the later one names newer packs
    if len(merged) < least or (snapshots and not write_archive(db, snapshots, generation)):
        return 0
    db.store.delete_all(merged)
    return sum(map(len, snapshots.values()))


class _Versions(NamedTuple):
    """What is kept of an archive: its generation, and sound snapshot objects."""

    generation: int
    snapshots: dict[SnapshotId, bytes]


def _read_archive(db: Database, info: ObjectInfo) -> _Versions | None:
    """Read an archive; None if it is gone, or must stay for `verify` to report.

    It must stay if a version in it is damaged that the store has nowhere else.
    """
    sound: dict[SnapshotId, bytes] = {}
    try:
        opened = parse_archive(db.store.get(info.name), info.name)
    except (NotFoundError, IntegrityError):
        return None
    for snapshot, content in opened.snapshots.items():
        if _is_sound(bytes(content), snapshot):
            sound[snapshot] = bytes(content)
        elif not _is_elsewhere(db, snapshot, info.name):
            return None
    return _Versions(opened.generation, sound)


def _is_sound(content: bytes, snapshot: SnapshotId) -> bool:
    with suppress(IntegrityError):
        check_member(content, snapshot, "an archive")
        return True
    return False


def _is_elsewhere(db: Database, snapshot: SnapshotId, archive: str) -> bool:
    """Whether the store has a sound copy of a version outside of an archive."""
    db.store.forget(names.snapshot_name(snapshot))
    with suppress(NotFoundError, IntegrityError):
        return bool(db.snapshots.load_own(snapshot))
    places = db.snapshots.archives.all_of(snapshot)
    others = [place for place in places if place.archive != archive]
    return any(_is_sound(db.snapshots.archives.read(place), snapshot) for place in others)


def _id_of(info: ObjectInfo) -> ArchiveId:
    return parse_id(ArchiveId, names.ARCHIVES, info.name)
