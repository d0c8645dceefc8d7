"""Verify: check every object of a store, and record what is damaged."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.expired import ExpiredVersions
from casweights.database.findings import summarize
from casweights.database.segment_check import check_segment
from casweights.database.segments import list_segments
from casweights.database.snapshots import SnapshotStore
from casweights.errors import CasweightsError, ErrorCode, IntegrityError, NotFoundError
from casweights.events import Stage
from casweights.format import names
from casweights.ids import PackId, SegmentId, SnapshotId, Suspect
from casweights.operations.archive_check import check_archives
from casweights.operations.frame_check import UNSOUND, FrameCheck
from casweights.results import Verification
from casweights.stores.base import ObjectInfo
from casweights.stores.optional import SupportsStrays

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casweights.database import Database
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId


_STRUCTURE = "header or list of chunks", "headers and lists of chunks"
_MAX_LOOKS = 4  # another look is needed only if a repack ended during the one before it


def verify(db: Database, *, quick: bool) -> Verification:
    """Check every object of the store.

    Other processes may delete branches and rewrite packs at the same time. An object that was
    deleted since it was listed is skipped. If a chunk is missing as well, the repack that deleted
    it may have stored it elsewhere, so everything is checked again.

    Args:
        db: The store.
        quick: Check the stored bytes against their checksums, without decoding and hashing the
            chunks. Detects damage, but not every forgery.

    Returns:
        The problems found, and how much was checked.
    """
    unlisted: set[str] = set()
    for looks_left in reversed(range(_MAX_LOOKS)):
        look = _Look(db)
        found = look.verify(unlisted, quick=quick)
        unlisted |= look.unlisted
        if not (looks_left and look.lost and (look.gone or look.unlisted)):
            break
    return found


class _Numbered(NamedTuple):
    """A version's number, and its first parent if it has one."""

    number: int
    first: tuple[SnapshotId, ...]


class _Look:
    """One look at all objects of the store; `verify` is called once.

    Refs are listed first, then snapshots, archives, and packs. Writers write in the opposite order,
    so a commit or a maintenance that runs at the same time is seen completely or not at all.

    Attributes:
        gone: Names of packs that were deleted since they were listed.
        lost: Chunks that a version needs and no sound frame holds.
        unlisted: Names of packs that may hold lost chunks and that the listing did not contain.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._problems: list[CasweightsError] = []  # of versions and refs, not of frames
        self._unreadable: set[str] = set()
        self._expired = ExpiredVersions([])
        self.gone: set[str] = set()
        self.lost: set[ChunkId] = set()
        self.unlisted: set[str] = set()

    def verify(self, unlisted: set[str], *, quick: bool) -> Verification:
        """Check everything once.

        Args:
            unlisted: Names of packs to check although a listing may lack them.
            quick: Do not decode frames.
        """
        db = self._db
        known = db.findings.load()
        refs = db.refs.objects()
        snapshots = list(db.store.list(names.SNAPSHOTS))
        archives = list(db.store.list(names.ARCHIVES))
        packs = [*snapshots, *_list_packs(db, unlisted)]
        frames = _check_frames(db, packs, quick=quick)
        self.gone = frames.gone
        damaged = _damaged(frames)
        segments = _check_segments(db, frames)
        bad = {s: str(why) for s, why in segments.items() if isinstance(why, IntegrityError)}
        noted = _note(db, damaged | bad)
        if not quick:
            untested = {location.suspect for location in frames.stranded}
            checked = {info.name for info in packs} - self.gone
            checked |= {names.pack_name(suspect.pack) for suspect in segments}
            _answer(db, known - untested, damaged | bad, checked)
        db.findings.answer_gone()
        self._unreadable = frames.unreadable
        self._problems.extend(check_archives(db, archives))
        found = self._verify_snapshots(snapshots, frames.sound)
        self.unlisted = set(db.store.sizes(self.unlisted - {info.name for info in packs}))
        self._verify_refs(refs, found)
        wrong = [why for why in segments.values() if why is not None]
        problems = [*frames.problems, *frames.blame(self.lost), *self._problems, *wrong]
        return Verification(
            problems=(*problems, *_problems_of_notes(db), *_odd_names(db)),
            snapshots=len(found),
            packs=frames.packs,
            frames=frames.frames,
            nbytes=sum(info.size for info in packs),
            archives=len(archives),
            damaged=len(damaged),
            noted=noted,
        )

    def _verify_snapshots(
        self, listed: Sequence[ObjectInfo], have: set[ChunkId]
    ) -> set[SnapshotId]:
        """Check all snapshots; return the IDs of those that exist, sound or not."""
        # A new object: the database's own may remember snapshots that are damaged in the store.
        db = self._db
        snapshots = SnapshotStore(db.store, db.index, db.reader, db.config)
        own = _snapshot_ids(listed)
        archived = [snapshot for snapshot in snapshots.archives.ids() if snapshot not in own]
        found = own.union(archived)
        numbered: dict[SnapshotId, _Numbered] = {}
        expired = self._expired = db.expired.load()
        for snapshot_id in (*sorted(own), *archived):
            try:
                stored = _load(snapshots, snapshot_id, is_own=snapshot_id in own)
            except UNSOUND as error:
                name = names.snapshot_name(snapshot_id)
                if isinstance(error, NotFoundError) and not self._exists(snapshot_id):
                    found.discard(snapshot_id)
                elif name not in self._unreadable:  # otherwise it is among the frames' problems
                    self._problems.append(error)
                continue
            numbered[snapshot_id] = _Numbered(stored.snapshot.number, stored.snapshot.parents[:1])
            self._verify_chunks(stored, have)
            name = names.snapshot_name(snapshot_id)
            self._problems.extend(
                _missing(f"{name}: its parent {parent} is not in the store")
                for parent in snapshots.parents(stored.snapshot)
                if parent not in found and not expired.find(parent) and not self._exists(parent)
            )
        self._problems.extend(_misnumbered(numbered, expired))
        return found

    def _verify_chunks(self, stored: StoredSnapshot, have: set[ChunkId]) -> None:
        """Record which chunks of a snapshot no sound frame holds."""
        snapshot = stored.snapshot
        lost, one, many = snapshot.structure().keys() - have, *_STRUCTURE
        try:
            if not lost:
                lost, one, many = stored.table.chunks.keys() - have, "chunk", "chunks"
        except UNSOUND as error:
            if self._exists(snapshot.id):
                self._problems.append(error)
            return
        if not lost or not self._exists(snapshot.id):  # deleted snapshots may lose their chunks
            return
        self.lost |= lost
        self.unlisted |= {names.pack_name(pack) for pack in stored.packs}
        count = f"its {one}" if len(lost) == 1 else f"{len(lost)} of its {many}, such as"
        name = names.snapshot_name(snapshot.id)
        self._problems.append(_missing(f"{name}: no sound frame holds {count} {min(lost)}"))

    def _verify_refs(self, listed: Sequence[ObjectInfo], snapshots: set[SnapshotId]) -> None:
        refs = self._db.refs
        targets: dict[str, SnapshotId | None] = {}
        heads = {info.name for info in _newest(listed)}
        for info in listed:
            try:
                targets[info.name] = refs.target(info)
            except UNSOUND as error:
                if not isinstance(error, NotFoundError) or refs.store.exists(info.name):
                    self._problems.append(error)
        deleted = _deleted_logs(targets)
        for name, target in targets.items():
            if target is None or name.rpartition("/")[0] in deleted:
                continue  # nothing needs the versions of a branch that was deleted
            is_past = name not in heads and self._expired.find(target) is not None
            if target not in snapshots and not is_past and not self._exists(target):
                ref = name.removesuffix(names.REF_SUFFIX)
                self._problems.append(
                    _missing(f"{ref} points to {target}, which is not in the store")
                )

    def _exists(self, snapshot_id: SnapshotId) -> bool:
        return self._db.snapshots.exists(snapshot_id)


def _deleted_logs(targets: Mapping[str, SnapshotId | None]) -> set[str]:
    """Return the logs whose newest move is a deletion, given where each move leads."""
    newest: dict[str, str] = {}
    deletions: set[tuple[str, str]] = set()
    for name, target in targets.items():
        log, _, move = name.rpartition("/")
        position = move[: names.POSITION_DIGITS]
        newest[log] = max(position, newest.get(log, ""))
        if target is None:
            deletions.add((log, position))
    return {log for log, position in newest.items() if (log, position) in deletions}


def _load(snapshots: SnapshotStore, snapshot_id: SnapshotId, *, is_own: bool) -> StoredSnapshot:
    """Read a version; one with an object of its own from there, to check that object."""
    if is_own:
        with suppress(NotFoundError):  # moved to an archive since
            return snapshots.load_own(snapshot_id)
    return snapshots.load_stored(snapshot_id)


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


def _check_frames(db: Database, packs: Sequence[ObjectInfo], *, quick: bool) -> FrameCheck:
    frames = FrameCheck(db, quick=quick)
    db.reporter.started(Stage.VERIFY, sum(info.size for info in packs))
    try:
        frames.read_indexes(packs)
        frames.check()
    finally:
        db.reporter.finished(Stage.VERIFY)
    return frames


def _check_segments(db: Database, frames: FrameCheck) -> dict[Suspect, CasweightsError | None]:
    """Check all segments against the packs; return what is wrong with each, by its finding."""
    keys = frames.keys()
    found: dict[Suspect, CasweightsError | None] = {}
    for info in list_segments(db.store):
        why = check_segment(db.store, info, keys)
        if not isinstance(why, NotFoundError):
            segment = names.parse_id(SegmentId, names.SEGMENTS, info.name)
            found[Suspect(PackId(segment), None)] = why
    return found


def _damaged(frames: FrameCheck) -> dict[Suspect, str]:
    """Return the damaged frames and packs, each with the error's message."""
    return {
        error.suspect: error.message
        for error in frames.problems
        if isinstance(error, IntegrityError) and error.suspect is not None
    }


def _note(db: Database, damaged: Mapping[Suspect, str]) -> str | None:
    """Write a finding, so that other writers store the damaged chunks again; return its name."""
    findings = summarize(damaged)
    db.index.heed(db.findings.load() | findings.keys())
    return db.findings.note(findings) if findings else None


def _answer(
    db: Database, known: Iterable[Suspect], damaged: Mapping[Suspect, str], checked: set[str]
) -> None:
    """Withdraw the known findings about packs that this check found sound."""
    bad_packs = {suspect.pack for suspect in damaged}
    wholly_bad = {suspect.pack for suspect in summarize(damaged) if suspect.offset is None}

    def is_true(suspect: Suspect) -> bool:
        if suspect.offset is None:
            return suspect.pack in bad_packs
        return suspect in damaged or suspect.pack in wholly_bad

    packs = _packs(checked)  # a finding does not say whether a snapshot carries the pack
    refuted = [s for s in known if s.pack in packs and not is_true(s)]
    db.findings.answer(refuted)


def _packs(objects: Iterable[str]) -> set[PackId]:
    """Return the packs in these objects; those with other names are left out."""
    packs: set[PackId] = set()
    for name in objects:
        with suppress(IntegrityError):
            packs.add(names.pack_of(name))
    return packs


def _is_segment(name: str) -> bool:
    """Whether this is the name of a segment, which may be new or gone by now."""
    with suppress(IntegrityError):
        return bool(names.parse_id(SegmentId, names.SEGMENTS, name))
    return False


def _problems_of_notes(db: Database) -> Iterator[CasweightsError]:
    """Yield an error for each damaged finding, record of expired versions, and policy."""
    yield from db.findings.problems()
    yield from db.expired.problems()
    yield from db.policies.problems()


def _odd_names(db: Database) -> Iterator[CasweightsError]:
    """Yield an error for each object that casweights does not write."""
    folders = (
        *(names.PACKS, names.SNAPSHOTS, names.ARCHIVES),
        *(names.HEADS, names.TAGS, names.DAMAGED, names.EXPIRED, names.POLICIES),
    )
    for info in db.store.list():
        is_known = info.name == names.CONFIG or info.name.startswith(folders)
        if not (is_known or _is_segment(info.name)):
            message = f"{info.name} is not an object of a casweights store"
            yield IntegrityError(ErrorCode.CORRUPT_OBJECT, message)
    able = db.store.ability(SupportsStrays)
    for name, kind in sorted(able.strays().items() if able is not None else ()):
        message = f"{name} is not an object of a store: it is {kind}"
        yield IntegrityError(ErrorCode.CORRUPT_OBJECT, message)


def _missing(message: str) -> IntegrityError:
    return IntegrityError(ErrorCode.MISSING_CHUNK, message)
