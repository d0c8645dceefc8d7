"""Marking: which objects of a store its versions need, where these lie, and what nothing needs.

A version needs its parents, its own copies, and for each of its chunks the frames of one chain. All
versions that stay in place must stay complete, also those that nothing names and that stay for
their frames, or because they share an archive.
"""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.aside import list_aside
from casweights.database.chunk_numbers import ChunkNumbers, ChunkSet
from casweights.database.moves import parse_move, version_in
from casweights.errors import ErrorCode, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.names import parse_id
from casweights.ids import SnapshotId
from casweights.operations.live_frames import LiveFrames, tidying
from casweights.operations.recorded_losses import RecordedLosses

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from casweights.database import Database
    from casweights.database.packs import PackContents
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectInfo

_MAX_LOOKS = 5  # at refs that others remove between their listing and their read


class Places(NamedTuple):
    """Where everything lies.

    Attributes:
        objects: The snapshots, archives and packs in their places, by name, also whole moves.
        archives: The versions in each archive.
        holding: The archives of each version that is in one.
        aside: The objects that collections have set aside, by the names that they had.
        packs: The packs and snapshots with frames, by name.
    """

    objects: dict[str, ObjectInfo]
    archives: dict[str, list[SnapshotId]]
    holding: dict[SnapshotId, list[str]]
    aside: dict[str, ObjectInfo]
    packs: dict[str, PackContents]


def list_candidates(db: Database) -> dict[str, ObjectInfo]:
    """Return all objects that a collection may set aside; whole moves always stay."""
    folders = (names.SNAPSHOTS, names.ARCHIVES, names.PACKS)
    return {info.name: info for folder in folders for info in db.objects.list(folder)}


def look(db: Database) -> Places:
    """List everything, and read all indexes.

    Raises:
        IntegrityError: An index or an archive cannot be read.
    """
    # A version moves from a branch to an object of its own, and from there to an archive, and
    # frames move from versions to packs: so the places are listed in this order.
    objects = {info.name: info for info in db.store.list(names.SNAPSHOTS)}
    archives = db.snapshots.archives.members()
    objects.update((info.name, info) for info in db.snapshots.archives.infos())
    objects.update((info.name, info) for info in db.objects.list(names.PACKS))
    db.index.load(exact=True)
    for name in db.index.unreadable:
        raise db.index.damaged[name]
    packs = {pack.info.name: pack for pack in db.index.contents()}
    return Places(objects, archives, _inverted(archives), list_aside(db.store), packs)


def _inverted(archives: Mapping[str, Sequence[SnapshotId]]) -> dict[SnapshotId, list[str]]:
    found: dict[SnapshotId, list[str]] = {}
    for name, versions in archives.items():
        for version in versions:
            found.setdefault(version, []).append(name)
    return found


def named_versions(db: Database, is_old: Callable[[ObjectInfo], bool]) -> set[SnapshotId]:
    """Return the versions that any move of any branch or tag names, also moves off the line.

    What a branch or tag named that was deleted counts, too, until the deletion is old. What an old
    move below the newest one names does not count if it has expired.

    Args:
        db: The store.
        is_old: Whether an object is older than the grace time.

    Raises:
        IntegrityError: A move is damaged.
    """
    for _ in range(_MAX_LOOKS):
        with suppress(NotFoundError):  # another client removed a move after the listing
            return _named(db, is_old)
    return _named(db, is_old)


def _named(db: Database, is_old: Callable[[ObjectInfo], bool]) -> set[SnapshotId]:
    infos = db.refs.objects()
    ends = db.refs.ends_of_logs(infos, is_old)
    places = [_place(info) for info in infos]
    newest: dict[str, int] = {}
    for log, position in places:
        newest[log] = max(position, newest.get(log, 0))
    expired = db.history.expired()
    found: set[SnapshotId | None] = set()
    deleted: set[SnapshotId | None] = set()
    lately: set[SnapshotId] = set()
    for info, (log, position) in zip(infos, places, strict=True):
        if position > ends.get(log, 0):
            target = db.refs.target(info)
            is_past = position < newest[log] and target is not None and expired.find(target)
            if target is None or not is_past:
                found.add(target)
                deleted.add(db.refs.deleted_from(info))
            elif not is_old(info):
                lately.add(target)
    # A collection with a shorter grace time may have removed those that have expired.
    found |= db.snapshots.archives.present(lately)
    # The mark of a deletion may be newer than its grace time, and than the collection after that.
    found |= _that_exist(db, {version for version in deleted if version is not None})
    return {version for version in found if version is not None}


def _that_exist(db: Database, versions: set[SnapshotId]) -> set[SnapshotId]:
    """Return those of these versions that are in their places or were set aside."""
    archives = db.snapshots.archives
    found = archives.present(versions) if versions else set()
    if lacking := versions - found:
        aside = list_aside(db.store)
        found |= {version for version in lacking if names.snapshot_name(version) in aside}
        for members in archives.members_aside(aside).values():
            found |= lacking.intersection(members)
    return found


def _place(info: ObjectInfo) -> tuple[str, int]:
    """Return the folder of a move's log, and the move's position there."""
    kind = names.HEADS if info.name.startswith(names.HEADS) else names.TAGS
    move = parse_move(info, kind)
    return kind + move.ref, move.position


def snapshot_in(name: str) -> SnapshotId | None:
    """Return the version that an object of this name is; None for all other objects."""
    if not name.startswith(names.SNAPSHOTS):
        return version_in(name)
    with suppress(IntegrityError):
        return parse_id(SnapshotId, names.SNAPSHOTS, name)
    return None


class Marking:
    """What versions need. Call `keep` with versions, then look at `needs` and `restored`.

    Args:
        db: A handle that remembers nothing.
        places: Where everything lies, see `look`.
        going: Names of the objects that may go. Everything else stays in its place, and so does
            what it needs.
        alone: Whether to keep only what the versions themselves need. Otherwise an object that one
            of them needs is kept with all versions in it, and with what those need.

    Attributes:
        places: The argument, or the result of `look_again`.
        versions: The versions that stay.
        chunks: Their chunks, and the bases of frames whose versions may not be written yet; without
            those that are lost.
        frames: The frames by which these chunks are rebuilt.
        numbers: Numbers of the chunks of the store.
    """

    def __init__(
        self, db: Database, places: Places, going: Container[str], *, alone: bool = False
    ) -> None:
        self._db = db
        self.places = places
        self._going = going
        self._alone = alone
        self.versions: set[SnapshotId] = set()
        rows = db.index.rows()
        self.numbers = ChunkNumbers(rows)
        self.chunks = ChunkSet(self.numbers)
        self.frames = LiveFrames(db.index, rows, places.packs)
        self._unplaced = array("I")  # numbers of the chunks whose chains are not chosen yet
        self._best: set[str] = set()  # archives and snapshots with the best copy of a version
        self._whole: set[str] = set()  # archives of which all versions are kept
        self._back: set[str] = set()  # versions and archives that lie aside and are needed
        self._aside: dict[str, list[SnapshotId]] | None = None
        self._expired = db.history.expired()
        # Otherwise each of many expired versions would walk the whole history.
        self._known_nearest: dict[SnapshotId, Sequence[SnapshotId]] = {}
        self._losses = RecordedLosses(db)

    @property
    def has_losses(self) -> bool:
        """Whether something is lost that a version needs. It is recorded, or this had stopped."""
        return self._losses.has_met

    def look_again(self) -> None:
        """Look where everything lies now."""
        self.places = look(self._db)
        self.frames.packs = self.places.packs

    def choose_again(self) -> None:
        """Look where everything lies now, and choose all chains again.

        Raises:
            IntegrityError: A chunk is missing now.
        """
        self.look_again()
        rows = self._db.index.rows()
        self.numbers, before = ChunkNumbers(rows), self.chunks
        self.chunks = ChunkSet(self.numbers)
        self.frames = LiveFrames(self._db.index, rows, self.places.packs)
        self._want(before)
        self._choose_chains()

    def no_chunks(self) -> ChunkSet:
        """Return an empty set of chunks."""
        return ChunkSet(self.numbers)

    @property
    def restored(self) -> set[str]:
        """Names of objects that are needed and were not in their places, as `places` says."""
        return self._back.union(self.frames.nbytes).difference(self.places.objects)

    def keep_with_staying(self, versions: Iterable[SnapshotId]) -> None:
        """Keep versions, and the objects that stay in any case, with all that they need.

        Raises:
            IntegrityError: Something that is needed is damaged or missing.
        """
        stay = [name for name in self.places.objects if name not in self._going]
        # Packs of running commits and pushes: their versions are not there yet. A push may write a
        # frame before its base. What was set aside is not read yet, so the chains are in place.
        packs = [pack for name, pack in self.places.packs.items() if name not in self._going]
        packs = [pack for pack in packs if pack.info.name.startswith(names.PACKS)]
        index = self._db.index
        bases = tidying((base for pack in packs for base in pack.bases()), index)
        self._want(base for base in bases if index.chain(base) is not None)
        own = [version for name in stay if (version := snapshot_in(name)) is not None]
        archived = [v for name in stay for v in self.places.archives.get(name, ())]
        self.keep([*own, *archived, *versions])

    def keep(self, versions: Iterable[SnapshotId]) -> None:
        """Keep versions with all that they need; raise the errors of `keep_with_staying`."""
        todo = list(versions)
        while todo or self._unplaced:
            self._keep_all(todo)
            self._choose_chains()
            todo = [] if self._alone else list(self._kept_for_frames())

    def needs(self, name: str) -> bool:
        """Whether an object in its place must stay there.

        Everything must if the manifest of a needed version is lost: nobody knows what it needs.
        """
        return self._losses.has_gone or name in self._best or name in self.frames.nbytes

    def _keep_all(self, todo: list[SnapshotId]) -> None:
        while todo:
            version = todo.pop()
            if version in self.versions:
                continue
            self.versions.add(version)
            try:
                stored, archive = self._load(version)
            except IntegrityError:
                if not self._losses.is_gone(version):
                    raise
                continue
            if archive is not None and not (self._alone or archive in self._whole):
                self._whole.add(archive)
                todo += self._members(archive)
            todo += self.parents(stored)
            self._want(self._chunks_of(stored))

    def _chunks_of(self, stored: StoredSnapshot) -> Iterable[ChunkId]:
        """Return the chunks of a version; if a list of them is lost, all that may be among them."""
        try:
            return stored.snapshot.stored_chunks()
        except IntegrityError:
            if not self._losses.is_known(stored.snapshot.id):
                raise
        packs = (self.places.packs.get(names.pack_name(pack)) for pack in stored.packs)
        inside = {at.frame.chunk for pack in packs if pack is not None for at in pack.locations}
        self._losses.allow(inside)
        return [*stored.snapshot.structure(), *inside]

    def _load(self, version: SnapshotId) -> tuple[StoredSnapshot, str | None]:
        """Return a version, and the archive that has the best copy of it.

        The archive is None if the best copy is an object of its own, which counts as the worst:
        it was to be replaced by the others.
        """
        name, copies = names.snapshot_name(version), list[str | None]()
        copies += self.places.holding.get(version, ())
        copies += [None] if name in self.places.objects else []
        damage: IntegrityError | None = None
        for archive in copies:
            try:
                return self._load_copy(version, archive), archive
            except IntegrityError as error:  # another copy may be sound
                damage = damage or error
        try:
            return self._load_aside(version, name)
        except IntegrityError as error:
            raise damage or error from None

    def _load_copy(self, version: SnapshotId, archive: str | None) -> StoredSnapshot:
        snapshots = self._db.snapshots
        try:
            if archive is None:
                stored = snapshots.load_own(version)
            else:
                stored = snapshots.load_archived(version, archive)
        except NotFoundError as error:
            raise _missing(error.message) from error
        self._best.add(archive or names.snapshot_name(version))
        return stored

    def _load_aside(self, version: SnapshotId, name: str) -> tuple[StoredSnapshot, str | None]:
        """Return a version that lies aside, with the archive that holds it; one is brought back."""
        found = self._archives_aside()
        archive = next((archive for archive, inside in found.items() if version in inside), None)
        if name in self.places.aside:
            archive = None
        elif archive is None:
            raise _missing(f"version {version} is not in the store")
        self._back.add(archive or name)
        try:
            return self._db.snapshots.load_stored(version), archive
        except NotFoundError as error:
            raise _missing(error.message) from error

    def _members(self, archive: str) -> Sequence[SnapshotId]:
        """Return the versions in an archive that stays or comes back."""
        members = self.places.archives.get(archive)
        return self._archives_aside()[archive] if members is None else members

    def _archives_aside(self) -> dict[str, list[SnapshotId]]:
        if self._aside is None:
            self._aside = self._db.snapshots.archives.members_aside(self.places.aside)
        return self._aside

    def parents(self, stored: StoredSnapshot) -> Iterator[SnapshotId]:
        """Yield the parents of a version; in place of those that have expired, theirs."""
        nearest = (found for parent in stored.snapshot.parents for found in self._nearest(parent))
        for parent in dict.fromkeys(nearest):
            if self._is_there(parent):
                yield parent
            elif not (stored.shallow or self._losses.is_gone(parent)):
                raise _missing(
                    f"version {stored.snapshot.id} has the ancestor {parent}, which is not in the "
                    "store"
                )

    def _nearest(self, version: SnapshotId) -> Sequence[SnapshotId]:
        """Return a version; or, if it has expired, the nearest ones before it that have not."""
        known, begun, todo = self._known_nearest, set[SnapshotId](), [version]
        while todo:
            current = todo[-1]
            row = None if current in known else self._expired.find(current)
            parents = () if row is None else row.parents
            # A forged record may lead in a circle.
            new = [parent for parent in parents if parent not in known and parent not in begun]
            if new and current not in begun:
                begun.add(current)
                todo += new
                continue
            todo.pop()
            if current not in known:
                found = (kept for parent in parents for kept in known.get(parent, ()))
                known[current] = (current,) if row is None else tuple(dict.fromkeys(found))
        return known[version]

    def _is_there(self, version: SnapshotId) -> bool:
        name, places = names.snapshot_name(version), self.places
        if name in places.objects or version in places.holding or name in places.aside:
            return True
        return any(version in members for members in self._archives_aside().values())

    def _want(self, chunks: Iterable[ChunkId]) -> None:
        for chunk in chunks:
            number = None if chunk in self._losses.met else self.chunks.add(chunk)
            if number is not None:
                self._unplaced.append(number)

    def _choose_chains(self) -> None:
        """Choose the frames of all chunks that are new.

        The frames of lost chunks are kept, with what they build on: a repair may need them.
        """
        while self._unplaced:
            new, self._unplaced = self._unplaced, array("I")
            for chunk in self.frames.follow(map(self.numbers.chunk, new), self.chunks):
                if not self._losses.is_lost(chunk):
                    raise _missing(f"no frame holds the chunk {chunk}, which a version needs")
                self.chunks.discard(chunk)
                frames = self._db.index.frames(chunk)
                self.frames.keep(frames)
                bases = [base for at in frames for base in at.frame.bases]
                self._losses.allow(bases)
                self._want(bases)

    def _kept_for_frames(self) -> Iterator[SnapshotId]:
        """Yield the versions whose objects stay or come back because they carry live frames."""
        for name in self.frames.nbytes:
            if name.startswith(names.SNAPSHOTS):
                version = snapshot_in(name)
                if version is not None and version not in self.versions:
                    yield version


def _missing(message: str) -> IntegrityError:
    return IntegrityError(
        ErrorCode.MISSING_CHUNK, f"{message}: nothing was set aside or deleted. See `verify`"
    )
