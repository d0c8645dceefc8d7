"""Archiving: old versions share objects, and their frames move into packs.

The snapshot object of an old version is replaced by a bare copy in an archive. Frames that it
carries are copied into a pack first. docs/design/030 has the reasoning.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import PACK_TARGET, MiB
from casweights.database.listing import find_listed
from casweights.database.merged import Merged
from casweights.errors import IntegrityError, NotFoundError
from casweights.events import Stage
from casweights.format import names
from casweights.format.archive import build_archive, is_intact, parse_archive
from casweights.format.names import parse_id
from casweights.format.snapshot import decode_snapshot, encode_snapshot
from casweights.ids import ArchiveId, SnapshotId
from casweights.operations.archive_check import check_member, read_nothing
from casweights.operations.merging import (
    Budget,
    Counted,
    FrameCopies,
    are_enough,
    are_sound,
    by_age,
    merge_levels,
)
from casweights.operations.replacements import set_replaced_aside
from casweights.stores.base import ObjectInfo
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from casweights.database import Database
    from casweights.database.packs import PackContents
    from casweights.format.lineage import Origin
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import PackId

_READERS = 16  # threads that wait for the network
_READ_AHEAD = 64 * MiB  # bytes of objects in memory that were not looked at yet
_SLICE_VERSIONS = 64  # of an archive that are checked in one slice: some milliseconds
_MAX_OBJECT = 1 << 30  # bytes: carried frames, a manifest and a pack table


def old_versions(db: Database) -> list[ObjectInfo]:
    """Return the objects of versions that belong into archives, oldest first; none if few do.

    They are those of all versions, except for those that the log of a branch names.
    """
    listed = by_age(_snapshot_objects(db))  # before the moves, which are written later
    if not are_enough(listed):
        return []
    recent = set(map(names.snapshot_name, db.refs.logged()))
    old = [info for info in listed if info.name not in recent]
    return old if are_enough(old) else []


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

    Args:
        db: The store.
        infos: The snapshot objects, oldest first.

    Returns:
        The names of the objects that were set aside.
    """
    work = Archiving(db, db.learn_merged)
    for _ in work.slices(infos):
        pass
    return work.moved


class _Version(NamedTuple):
    """A version in memory, with the bytes of its object."""

    stored: StoredSnapshot
    data: memoryview


def _read(db: Database, info: ObjectInfo) -> _Version | None:
    """Read a snapshot object; None if it is damaged or gone, which is for `verify` to report."""
    snapshot = parse_id(SnapshotId, names.SNAPSHOTS, info.name)
    try:
        data = db.objects.read(info.name, _MAX_OBJECT)
        stored = decode_snapshot(data, snapshot, info.name, read_nothing)
    except (NotFoundError, IntegrityError):
        return None
    view = memoryview(data)
    return _Version(stored, view) if are_sound(view, stored.frames) else None


class Archiving:
    """Moves versions into archives, and the frames in their objects into packs, in slices.

    The objects are set aside after everything in them is durable elsewhere. Those that are damaged
    or gone are passed over. Iterate over `slices` once; `moved` grows with it.

    Args:
        db: The store.
        merged: Called after the frames of objects were copied, and before these are set aside.

    Attributes:
        moved: Names of the objects that were set aside.
    """

    def __init__(self, db: Database, merged: Callable[[Merged], object]) -> None:
        self._db = db
        self._merged = merged
        self._group: list[StoredSnapshot] = []  # versions whose frames fit in one pack
        self._copies = FrameCopies()  # of their frames
        self._into: dict[PackId, PackId] = {}
        self._bare: dict[SnapshotId, bytes] = {}  # versions whose frames are in packs
        self._bare_bytes = 0
        self._infos: dict[str, ObjectInfo] = {}
        self.moved: list[str] = []

    def slices(self, infos: Sequence[ObjectInfo]) -> Iterator[None]:
        """Move versions, and yield after each slice of work.

        Args:
            infos: The snapshot objects, oldest first.
        """
        if not infos:
            return
        self._infos = {info.name: info for info in infos}
        reporter = self._db.reporter
        reporter.started(Stage.MAINTAIN, sum(info.size for info in infos))
        try:
            with _readers(self._db, infos) as readers:
                versions = readers.map_asked(partial(_read, self._db), infos)
                for info, version in zip(infos, versions, strict=True):
                    if version is not None:
                        yield from self._add(version)
                    reporter.advanced(Stage.MAINTAIN, info.size)
                    yield
            yield from self._write_frames()
            yield from self._write_archive()
        finally:
            reporter.finished(Stage.MAINTAIN)

    def _add(self, version: _Version) -> Iterator[None]:
        """Add a version; writes the earlier ones if there are many."""
        frames = version.stored.frames
        if not self._copies.has_room(frames):
            yield from self._write_frames()
        if (yield from self._copies.add(frames, version.data)):
            self._group.append(version.stored)

    def _write_frames(self) -> Iterator[None]:
        """Write the frames of the group, which are durable then, and make its bare copies."""
        group, self._group = self._group, []
        copies, self._copies = self._copies, FrameCopies()
        if not copies.is_empty:
            pack = yield from copies.write(self._db, 1)  # carried frames have generation 0
            if pack is None:
                return
            self._note_copied(group, pack)
        for stored in group:
            content = b"".join(encode_snapshot(stored.archived(self._into)))
            if self._bare_bytes + len(content) > PACK_TARGET:
                yield from self._write_archive()
            self._bare[stored.snapshot.id] = content
            self._bare_bytes += len(content)
            yield

    def _note_copied(self, group: Sequence[StoredSnapshot], pack: PackContents) -> None:
        """Note that a pack has the frames which the objects of a group carry."""
        carried = [stored.carried for stored in group if stored.carried is not None]
        self._into |= dict.fromkeys(carried, names.pack_of(pack.info.name))
        self._merged(Merged(list(map(names.pack_name, carried)), [pack]))

    def _write_archive(self) -> Iterator[None]:
        """Write an archive of the bare copies, and set the objects aside that they replace."""
        bare, self._bare, self._bare_bytes = self._bare, {}, 0
        archive = write_archive(self._db, bare, 1) if bare else None
        if archive is not None:
            yield
            replaced = list(map(names.snapshot_name, bare))
            carried = map(names.pack_of, replaced)
            packs = {names.pack_name(self._into[one]) for one in carried if one in self._into}
            infos = [self._infos[name] for name in replaced]
            yield from set_replaced_aside(self._db, infos, [archive, *sorted(packs)])
            self._db.index.drop(replaced)
            self.moved += replaced
            yield


def _readers(db: Database, infos: Sequence[ObjectInfo]) -> Workers:
    """Return threads that read objects, few if some are large; one if the store has one."""
    largest = max(info.size for info in infos)
    most = _READERS if db.workers.count > 1 else 1
    return Workers(max(1, min(most, _READ_AHEAD // (2 * largest + 1))))


def write_archive(
    db: Database, snapshots: Mapping[SnapshotId, bytes], generation: int
) -> str | None:
    """Write an archive; return its name if all readers find its versions there from now on."""
    sealed = build_archive(snapshots, generation)
    if db.store.put(sealed.name, sealed.parts):
        return sealed.name if find_listed(db.store, sealed.name) else None
    # It was there, and may be damaged. A copy in a cache proves nothing.
    db.store.forget(sealed.name)
    with suppress(NotFoundError):  # other maintenance has merged it
        if is_intact(db.objects.get(sealed.name), sealed.id):
            return sealed.name
    return None


def merge_archives(db: Database, budget: Budget) -> Counted:
    """Merge small archives, in slices.

    Args:
        db: The store.
        budget: What may be read.

    Returns:
        The number of bytes written.
    """
    archives = db.snapshots.archives
    merge = partial(_merge, db, least=2)
    written = yield from merge_levels(db, lambda: list(archives.infos()), merge, budget)
    archives.refresh()
    return written


def renew_lineage(db: Database, lineages: Mapping[SnapshotId, Sequence[Origin]]) -> None:
    """Give some versions another lineage, in archives; whole moves keep theirs."""
    if not lineages:
        return
    own = set(map(names.snapshot_name, lineages))
    archive(db, by_age(info for info in _snapshot_objects(db) if info.name in own))
    archives = db.snapshots.archives
    archives.refresh()
    found = archives.locate(lineages)
    wanted = {place.archive for places in found.values() for place in places}

    def renewed(version: SnapshotId, content: bytes) -> bytes:
        if version not in lineages:
            return content
        stored = decode_snapshot(content, version, "an archive", read_nothing)
        return b"".join(encode_snapshot(stored.with_lineage(lineages[version])))

    for info in list(archives.infos()):
        if info.name in wanted:
            for _ in _merge(db, [info], change=renewed):
                pass
    archives.refresh()


def replace_damaged_archives(db: Database) -> None:
    """Replace each damaged archive of whose damaged versions the store has sound copies."""
    for info in db.snapshots.archives.infos():
        with suppress(NotFoundError):
            if not is_intact(db.store.get(info.name), _id_of(info)):
                for _ in _merge(db, [info]):
                    pass


def _merge(
    db: Database,
    group: Sequence[ObjectInfo],
    least: int = 1,
    change: Callable[[SnapshotId, bytes], bytes] = lambda _, content: content,
) -> Counted:
    """Write the versions of some archives as one, and set the archives aside.

    Archives that must stay are left out, and nothing happens if fewer than `least` are left.

    Returns:
        The number of bytes written.
    """
    snapshots: dict[SnapshotId, bytes] = {}
    merged, generation = list[ObjectInfo](), 1
    for info in group:
        found = yield from _read_archive(db, info)
        if found is not None:
            merged.append(info)
            generation = max(generation, 1 + found.generation)
            # Of two copies, the later one names newer packs.
            snapshots |= {one: change(one, data) for one, data in found.snapshots.items()}
        yield
    if len(merged) < least:
        return 0
    archive = write_archive(db, snapshots, generation) if snapshots else None
    yield
    if snapshots and archive is None:
        return 0
    yield from set_replaced_aside(db, merged, [archive] if archive else [])
    return sum(map(len, snapshots.values()))


class _Versions(NamedTuple):
    """What is kept of an archive: its generation, and sound snapshot objects."""

    generation: int
    snapshots: dict[SnapshotId, bytes]


def _read_archive(db: Database, info: ObjectInfo) -> Generator[None, None, _Versions | None]:
    """Read an archive, in slices; None if it is gone, or must stay for `verify` to report.

    It must stay if a version in it is damaged that the store has nowhere else.
    """
    sound: dict[SnapshotId, bytes] = {}
    try:
        opened = parse_archive(db.store.get(info.name), info.name)
    except (NotFoundError, IntegrityError):
        return None
    for number, (snapshot, content) in enumerate(opened.snapshots.items(), 1):
        if _is_sound(bytes(content), snapshot):
            sound[snapshot] = bytes(content)
        elif not _is_elsewhere(db, snapshot, info.name):
            return None
        if number % _SLICE_VERSIONS == 0:
            yield
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
