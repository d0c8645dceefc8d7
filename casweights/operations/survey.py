"""Survey: what is in a store, which frames are sound, and what its versions lack."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.aside import by_former_name, parse_listing
from casweights.database.expired import ExpiredVersions
from casweights.database.findings import summarize
from casweights.database.packs import is_pack
from casweights.database.segment_check import check_segment
from casweights.database.segments import list_segments
from casweights.database.snapshots import SnapshotStore
from casweights.errors import CasweightsError, ErrorCode, IntegrityError, NotFoundError
from casweights.events import Stage
from casweights.format import names
from casweights.ids import PackId, SegmentId, SnapshotId, Suspect
from casweights.operations.archive_check import check_archives
from casweights.operations.frame_check import UNSOUND, FrameCheck
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from casweights.database import Database
    from casweights.format.manifest import Snapshot
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId


_STRUCTURE = "header or list of chunks", "headers and lists of chunks"
_MAX_LOOKS = 4  # another look is needed only if a repack ended during the one before it


class Choice(NamedTuple):
    """The part of a store to check.

    Attributes:
        quick: Whether to check stored bytes only, without decoding frames.
        versions: Tells which versions to check; None for all.
        chunks: Tells which chunks to check the frames of; None for all. Of `versions`, only those
            that they need are checked.
    """

    quick: bool = False
    versions: Callable[[Snapshot], bool] | None = None
    chunks: Callable[[ChunkId], bool] | None = None

    @property
    def is_part(self) -> bool:
        """Whether some frames may be left out."""
        return self.versions is not None or self.chunks is not None


def survey(db: Database, choice: Choice) -> Survey:
    """Look at all objects of a store.

    Other processes may delete branches and rewrite packs at the same time. An object that was
    deleted since it was listed is skipped. If a chunk is missing as well, the repack that deleted
    it may have stored it elsewhere, so everything is looked at again. What others replace is read
    only if something is missing.
    """
    unlisted: set[str] = set()
    with_replaced = False
    for looks_left in reversed(range(_MAX_LOOKS)):
        look = Survey(db, choice)
        look.take(unlisted, with_replaced=with_replaced)
        unlisted |= look.unlisted
        is_stale = look.lost and (look.frames.gone or look.unlisted)
        is_short = look.is_lacking and look.has_replaced and not with_replaced
        if not (looks_left and (is_stale or is_short)):
            break
        with_replaced |= is_short
    return look


def note_damage(db: Database, damaged: Mapping[Suspect, str]) -> str | None:
    """Write findings, so that other writers store the damaged chunks again; return their place."""
    findings = summarize(damaged)
    db.index.heed(db.findings.load() | findings.keys())
    return db.findings.note(findings) if findings else None


class _Numbered(NamedTuple):
    """A version's number, and its first parent if it has one."""

    number: int
    first: tuple[SnapshotId, ...]


class Survey:
    """One look at all objects of the store; `take` is called once, and fills the attributes.

    Refs are listed first, then snapshots, archives, and packs. Writers write in the opposite order,
    so a commit or a maintenance that runs at the same time is seen completely or not at all.

    Args:
        db: The store.
        choice: What to check.

    Attributes:
        snapshots: The versions, with and without objects of their own.
        packs: The objects that may hold frames.
        archives: The archives.
        frames: The check of the frames.
        segments: What is wrong with each segment, by its finding; None if nothing is.
        found: The versions that exist, sound or not.
        checked: Number of versions that were checked.
        recorded: The names of the records of versions that are known to be lost.
        unreadable: The versions whose every copy is damaged.
        absent: Versions that refs and other versions name, and that the store does not have.
        lacking: Versions that need chunks which no sound frame holds.
        lost: These chunks.
        unlisted: Names of packs that may hold them and that the listing did not contain.
        has_replaced: Whether something lies aside, unchecked, that others replace.
        problems: An error for each problem of versions, archives and refs.
    """

    frames: FrameCheck

    def __init__(self, db: Database, choice: Choice) -> None:
        self._db = db
        self._choice = choice
        self._own: set[SnapshotId] = set()
        self._expired = ExpiredVersions([])
        self._aside: Mapping[str, ObjectInfo] = {}
        self.snapshots = SnapshotStore(db.store, db.index, db.reader, db.config, db.expired)
        self.packs: list[ObjectInfo] = []
        self.archives: list[ObjectInfo] = []
        self.segments: dict[Suspect, CasweightsError | None] = {}
        self.found: set[SnapshotId] = set()
        self.checked = 0
        self.recorded: dict[SnapshotId, list[str]] = {}
        self.unreadable: list[SnapshotId] = []
        self.absent: set[SnapshotId] = set()
        self.lacking: list[SnapshotId] = []
        self.lost: set[ChunkId] = set()
        self.unlisted: set[str] = set()
        self.has_replaced = False
        self.problems: list[CasweightsError] = []

    @property
    def is_lacking(self) -> bool:
        """Whether something is missing."""
        return bool(self.lost or self.absent or self.unreadable)

    def take(self, unlisted: set[str], *, with_replaced: bool) -> None:
        """Check everything once.

        Args:
            unlisted: Names of packs to check although a listing may lack them.
            with_replaced: Whether to check what lies aside because others replace it.
        """
        db = self._db
        self.recorded = db.losses.names()
        refs = db.refs.objects()
        listed = list(db.store.list(names.SNAPSHOTS))
        self.archives = list(db.store.list(names.ARCHIVES))
        self.packs = [*listed, *_list_packs(db, unlisted)]
        aside = list(parse_listing(db.store.list(names.ASIDE)))
        chosen = [one for one in aside if with_replaced or not one[0].is_of_replaced]
        self.has_replaced = len(chosen) < len(aside)
        self._aside = by_former_name(chosen)
        # What was set aside counts as there: it comes back if a version needs it.
        there = {info.name for info in self.packs}
        self.packs += [i for i in self._aside.values() if i.name not in there and is_pack(i.name)]
        self._own = _snapshot_ids(listed)
        archived = [found for found in self.snapshots.archives.ids() if found not in self._own]
        self.found = self._own.union(archived)
        self._check_frames()
        self.segments = _check_segments(db, self.frames)
        self.problems.extend(check_archives(db, self.archives))
        skipped = self._verify_snapshots([*sorted(self._own), *archived])
        self.checked = len(self.found) - skipped
        self.unlisted = set(db.store.sizes(self.unlisted - {info.name for info in self.packs}))
        self._verify_refs(refs)

    def damaged(self) -> dict[Suspect, str]:
        """Return the damaged frames and packs, each with the error's message."""
        return {
            error.suspect: error.message
            for error in self.frames.problems
            if isinstance(error, IntegrityError) and error.suspect is not None
        }

    def _check_frames(self) -> None:
        db, choice = self._db, self._choice
        self.frames = FrameCheck(db, quick=choice.quick)
        db.reporter.started(Stage.VERIFY, sum(info.size for info in self.packs))
        try:
            self.frames.read_indexes(self.packs)
            self.frames.check(self._chosen() if choice.is_part else None)
        finally:
            db.reporter.finished(Stage.VERIFY)

    def _chosen(self) -> Callable[[ChunkId], bool]:
        """Return which chunks to check the frames of."""
        choice = self._choice
        needed: set[ChunkId] = set()
        if choice.versions is None:
            return choice.chunks or needed.__contains__
        for snapshot_id in self.found:
            with suppress(*UNSOUND):  # reported by `_verify_snapshots`
                snapshot = self.snapshots.load(snapshot_id, with_locations=True)
                if choice.versions(snapshot):
                    needed.update(snapshot.structure())
                    needed.update(snapshot.stored_chunks())
        chunks = choice.chunks
        return needed.__contains__ if chunks is None else lambda c: c in needed and chunks(c)

    def _verify_snapshots(self, snapshots: Sequence[SnapshotId]) -> int:
        """Check the chosen versions; those that were deleted since their listing leave `found`.

        Returns:
            The number of versions that were not chosen.
        """
        # A new object: the one before may remember snapshots that are damaged in the store.
        db = self._db
        self.snapshots = SnapshotStore(db.store, db.index, db.reader, db.config, db.expired)
        numbered: dict[SnapshotId, _Numbered] = {}
        self._expired = db.expired.load()
        skipped, chosen = 0, self._choice.versions
        for snapshot_id in snapshots:
            try:
                stored = self._load(snapshot_id)
            except UNSOUND as error:
                self._note_unreadable(snapshot_id, error)
                continue
            if chosen is not None and not chosen(stored.snapshot):
                skipped += 1
                continue
            numbered[snapshot_id] = _Numbered(stored.snapshot.number, stored.snapshot.parents[:1])
            self._verify_chunks(stored)
            for parent in self.snapshots.parents(stored.snapshot):
                if not (parent in self.found or self._expired.find(parent) or self._exists(parent)):
                    self.absent.add(parent)
                    name = names.snapshot_name(snapshot_id)
                    self._report(f"{name}: its parent {parent} is not in the store", parent)
        self.problems.extend(_misnumbered(numbered, self._expired))
        return skipped

    def _load(self, snapshot_id: SnapshotId) -> StoredSnapshot:
        """Read a version; one with an object of its own from there, to check that object."""
        if snapshot_id not in self._own:
            return self.snapshots.load_stored(snapshot_id)
        try:
            return self.snapshots.load_own(snapshot_id)
        except NotFoundError:  # moved to an archive since
            return self.snapshots.load_stored(snapshot_id)

    def _note_unreadable(self, snapshot_id: SnapshotId, error: CasweightsError) -> None:
        name = names.snapshot_name(snapshot_id)
        if isinstance(error, NotFoundError) and not self._exists(snapshot_id):
            self.found.discard(snapshot_id)
            return
        if name not in self.frames.unreadable:  # otherwise it is among the frames' problems
            self.problems.append(error)
        with suppress(*UNSOUND):  # an archive has a sound copy
            self._verify_chunks(self.snapshots.load_stored(snapshot_id))
            return
        self.unreadable.append(snapshot_id)
        if snapshot_id in self.recorded:
            self._report(f"{name}: its manifest is lost", snapshot_id)

    def _verify_chunks(self, stored: StoredSnapshot) -> None:
        """Record which chunks of a snapshot no sound frame holds."""
        snapshot, have = stored.snapshot, self.frames.sound
        lost, one, many = snapshot.structure().keys() - have, *_STRUCTURE
        try:
            if not lost:
                lost, one, many = stored.table.chunks.keys() - have, "chunk", "chunks"
        except UNSOUND as error:
            if self._exists(snapshot.id):
                self.problems.append(error)
            return
        if not lost or not self._exists(snapshot.id):  # deleted snapshots may lose their chunks
            return
        self.lacking.append(snapshot.id)
        self.lost |= lost
        self.unlisted |= {names.pack_name(pack) for pack in stored.packs}
        count = f"its {one}" if len(lost) == 1 else f"{len(lost)} of its {many}, such as"
        name = names.snapshot_name(snapshot.id)
        self._report(f"{name}: no sound frame holds {count} {min(lost)}", snapshot.id)

    def _verify_refs(self, listed: Sequence[ObjectInfo]) -> None:
        """Check that the store has the versions of all moves, but for those of deleted logs."""
        heads = {info.name for info in _newest(listed)}
        lacking: dict[str, SnapshotId] = {}
        for name, target in self._targets(listed).items():
            is_past = name not in heads and target and self._expired.find(target) is not None
            if target and target not in self.found and not is_past and not self._exists(target):
                lacking[name] = target
        if not lacking:
            return
        ends = self._ends_by_now({_place(name)[0] for name in lacking})
        for name, target in lacking.items():
            log, position = _place(name)
            if position > ends.get(log, 0):
                self.absent.add(target)
                ref = name.removesuffix(names.REF_SUFFIX)
                self._report(f"{ref} points to {target}, which is not in the store", target)

    def _ends_by_now(self, logs: set[str]) -> dict[str, int]:
        """Return the position up to which a deletion has ended each of these logs that has one."""
        refs = self._db.refs
        for _ in range(_MAX_LOOKS):
            now = [info for info in refs.objects() if info.name.rpartition("/")[0] in logs]
            with suppress(NotFoundError):  # a mark has taken the place of a log since
                return refs.ends_of_logs(now)
        return {}

    def _targets(self, moves: Sequence[ObjectInfo]) -> dict[str, SnapshotId | None]:
        """Return where moves lead, None for deletions; report damaged ones."""
        refs = self._db.refs
        targets: dict[str, SnapshotId | None] = {}
        for info in moves:
            try:
                targets[info.name] = refs.target(info)
            except UNSOUND as error:
                is_gone = isinstance(error, NotFoundError) and not refs.store.exists(info.name)
                if not is_gone:
                    self.problems.append(error)
        return targets

    def _report(self, message: str, lost: SnapshotId) -> None:
        """Add a problem with a version, and say where its loss is recorded, if it is."""
        records = self.recorded.get(lost, [])
        known = f" (a known loss, recorded in {records[0]})" if records else ""
        self.problems.append(IntegrityError(ErrorCode.MISSING_CHUNK, message + known))

    def _exists(self, snapshot_id: SnapshotId) -> bool:
        if names.snapshot_name(snapshot_id) in self._aside:
            return True
        if self._db.snapshots.exists(snapshot_id):
            return True
        return snapshot_id in self._archived_aside

    @cached_property
    def _archived_aside(self) -> set[SnapshotId]:
        """The versions in archives that collections have set aside."""
        members = self._db.snapshots.archives.members_aside(self._aside)
        return {version for versions in members.values() for version in versions}


def _place(name: str) -> tuple[str, int]:
    """Return the folder of a move's log, and the move's position there."""
    log, _, move = name.rpartition("/")
    return log, int(move[: names.POSITION_DIGITS])


def _newest(moves: Sequence[ObjectInfo]) -> set[ObjectInfo]:
    """Return the moves at the highest position of their branch or tag."""
    found: dict[str, list[ObjectInfo]] = {}
    for info in sorted(moves, key=lambda info: info.name):
        ref, _, name = info.name.rpartition("/")
        start = f"{ref}/{name[: names.POSITION_DIGITS]}"
        rivals = [other for other in found.get(ref, ()) if other.name.startswith(start)]
        found[ref] = [*rivals, info]
    return {info for infos in found.values() for info in infos}


def _snapshot_ids(listed: Sequence[ObjectInfo]) -> set[SnapshotId]:
    """Return the IDs of these objects; the check of the frames reports other names."""
    found: set[SnapshotId] = set()
    for info in listed:
        with suppress(IntegrityError):
            found.add(names.parse_id(SnapshotId, names.SNAPSHOTS, info.name))
    return found


def _misnumbered(
    versions: Mapping[SnapshotId, _Numbered], expired: ExpiredVersions
) -> Iterator[CasweightsError]:
    """Yield an error for each version whose number does not follow that of its first parent.

    Also yield one for each record that says something else of a version than the version itself.
    """
    for snapshot_id, (number, first) in versions.items():
        row, parent = expired.find(snapshot_id), expired.find(first[0]) if first else None
        if row is not None and (row.number != number or row.parents[:1] not in ((), first)):
            message = f"the record that {snapshot_id} expired has another number or parent"
            yield IntegrityError(ErrorCode.CORRUPT_OBJECT, message)
        if first and first[0] not in versions and parent is None:
            continue
        before = parent.number if parent is not None else 0
        if first and first[0] in versions:
            before = versions[first[0]].number
        if number != before + 1:
            why = f"that of its first parent is {before}" if first else "it has no parents"
            message = f"{names.snapshot_name(snapshot_id)}: its number is {number}, but {why}"
            yield IntegrityError(ErrorCode.CORRUPT_OBJECT, message)


def _list_packs(db: Database, unlisted: set[str]) -> list[ObjectInfo]:
    listed = list(db.store.list(names.PACKS))
    others = db.store.sizes(sorted(unlisted - {info.name for info in listed}))
    return [*listed, *(ObjectInfo(name, size) for name, size in others.items())]


def _check_segments(db: Database, frames: FrameCheck) -> dict[Suspect, CasweightsError | None]:
    """Check all segments against the packs; return what is wrong with each, by its finding."""
    keys = frames.keys
    found: dict[Suspect, CasweightsError | None] = {}
    for info in list_segments(db.store):
        why = check_segment(db.store, info, keys)
        if not isinstance(why, NotFoundError):
            segment = names.parse_id(SegmentId, names.SEGMENTS, info.name)
            found[Suspect(PackId(segment), None)] = why
    return found
