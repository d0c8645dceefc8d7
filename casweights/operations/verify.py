"""Looking after a store: is everything in it sound?"""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from casweights.database.chains import MAX_LINKS
from casweights.database.findings import summarize
from casweights.database.frames import damaged_frame, decode_frame, read_payload
from casweights.database.index import read_pack_index
from casweights.database.snapshots import SnapshotStore
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from casweights.events import Stage
from casweights.format import names
from casweights.format.fields import parse_id
from casweights.ids import PackId, SnapshotId, Suspect
from casweights.results import Verification
from casweights.stores.base import ObjectInfo
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casweights.database import Database
    from casweights.format.pack import Location
    from casweights.ids import ChunkId


_LOOKS = 4  # each further one follows a repack that ended during the one before it
_UNSOUND = (IntegrityError, InvalidInputError, NotFoundError, UnsupportedError)


def verify(db: Database, *, quick: bool) -> Verification:
    """Check every object of the store.

    Others may delete branches and rewrite packs meanwhile. An object that is gone is not damaged,
    so it is passed over; if a chunk is missing then, all is looked at again.

    Args:
        db: The store.
        quick: Check the stored bytes against their checksums, without decoding and hashing the
            chunks: finds damage, but not every forgery.
    """
    unlisted: set[str] = set()
    for looks_left in reversed(range(_LOOKS)):
        look = _Look(db)
        found = look.verify(unlisted, quick=quick)
        unlisted |= look.unlisted
        if not (looks_left and look.lost and (look.gone or look.unlisted)):
            break
    return found


class _Look:
    """One look at all objects.

    Attributes:
        gone: Packs that were deleted since they were listed.
        lost: Chunks that a version needs and no sound frame holds.
        unlisted: Packs that may hold lost chunks, and that the listing did not show.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self.gone: set[str] = set()
        self.lost: set[ChunkId] = set()
        self.unlisted: set[str] = set()

    def verify(self, unlisted: set[str], *, quick: bool) -> Verification:
        """What is found; packs that no listing shows are looked at as well."""
        db = self._db
        problems: list[CasweightsError] = []
        # Listed against the order of writing, so that a commit beside us is seen whole or not at
        # all.
        told = db.findings.load()
        refs = db.refs.objects()
        snapshots = list(db.store.list(names.SNAPSHOTS))
        packs = _list_packs(db, unlisted)
        db.reporter.started(Stage.VERIFY, sum(info.size for info in packs))
        try:
            forest = _read_forest(db, packs, problems, self.gone)
            have, stranded = _verify_forest(db, forest, problems, self.gone, quick=quick)
        finally:
            db.reporter.finished(Stage.VERIFY)
        damaged = {
            error.suspect: error.message
            for error in problems
            if isinstance(error, IntegrityError) and error.suspect is not None
        }
        noted = _note(db, damaged)
        if not quick:
            untested = {location.suspect for location in stranded}
            checked = {info.name for info in packs} - self.gone
            _answer(db, told - untested, damaged, checked)
        db.findings.answer_gone()
        missing: list[CasweightsError] = []
        found = self._verify_snapshots(snapshots, have, missing)
        self.unlisted = set(db.store.sizes(self.unlisted - {info.name for info in packs}))
        problems += [*_blame(stranded, self.lost), *missing]
        _verify_refs(db, refs, found, problems)
        problems += db.findings.problems()
        _verify_names(db, problems)
        return Verification(
            problems=tuple(problems),
            snapshots=len(found),
            packs=len(packs),
            frames=sum(map(len, forest.values())),
            nbytes=sum(info.size for info in packs),
            damaged=len(damaged),
            noted=noted,
        )

    def _verify_snapshots(
        self, listed: Sequence[ObjectInfo], have: set[ChunkId], problems: list[CasweightsError]
    ) -> set[SnapshotId]:
        """Check all snapshots; returns those that are in the store, sound or not."""
        db = self._db
        stored = SnapshotStore(db.store, db.index, db.config)  # which remembers none yet
        found: set[SnapshotId] = set()
        for info in listed:
            try:
                found.add(parse_id(SnapshotId, names.SNAPSHOTS, info.name))
            except IntegrityError as error:
                problems.append(error)
        for snapshot_id in sorted(found):
            name = names.snapshot_name(snapshot_id)
            try:
                snapshot, _, table = stored.load_stored(snapshot_id)
            except _UNSOUND as error:
                if isinstance(error, NotFoundError) and not db.store.exists(name):
                    found.discard(snapshot_id)
                else:
                    problems.append(error)
                continue
            lost = {chunk for chunk, _ in snapshot.pieces()} - have
            if lost and db.store.exists(name):
                self.lost |= lost
                self.unlisted |= {names.pack_name(pack) for pack in table.packs}
                count = "its chunk" if len(lost) == 1 else f"{len(lost)} of its chunks, as"
                problems.append(_missing(f"{name}: no sound frame holds {count} {min(lost)}"))
            problems.extend(
                _missing(f"{name}: its parent {parent} is not in the store")
                for parent in stored.parents(snapshot)
                if parent not in found and not db.store.exists(names.snapshot_name(parent))
            )
        return found


def _list_packs(db: Database, unlisted: set[str]) -> list[ObjectInfo]:
    listed = list(db.store.list(names.PACKS))
    others = db.store.sizes(sorted(unlisted - {info.name for info in listed}))
    return [*listed, *(ObjectInfo(name, size) for name, size in others.items())]


def _note(db: Database, damaged: Mapping[Suspect, str]) -> str | None:
    """Tell others what is damaged; returns where."""
    findings = summarize(damaged)
    db.index.heed(db.findings.load() | findings.keys())
    return db.findings.note(findings) if findings else None


def _answer(
    db: Database, told: Iterable[Suspect], damaged: Mapping[Suspect, str], checked: set[str]
) -> None:
    """Take back what was told of packs that were checked now and is no longer true."""
    bad_packs = {suspect.pack for suspect in damaged}
    wholly_bad = {suspect.pack for suspect in summarize(damaged) if suspect.offset is None}

    def is_true(suspect: Suspect) -> bool:
        if suspect.offset is None:
            return suspect.pack in bad_packs
        return suspect in damaged or suspect.pack in wholly_bad

    over = [s for s in told if names.pack_name(s.pack) in checked and not is_true(s)]
    db.findings.answer(over)


_Forest = dict["ChunkId | None", list["Location"]]  # frames by their base; whole ones at None


def _read_forest(
    db: Database,
    packs: Sequence[ObjectInfo],
    problems: list[CasweightsError],
    gone: set[str],
) -> _Forest:
    forest: _Forest = {}
    for info, found in db.workers.map(partial(_try_index, db), packs):
        locations: list[Location] = []
        if isinstance(found, NotFoundError):
            gone.add(info.name)
        elif isinstance(found, CasweightsError):
            problems.append(found)
        else:
            locations = found
        for location in locations:
            forest.setdefault(location.frame.base, []).append(location)
        beside = info.size - sum(location.frame.size for location in locations)
        db.reporter.advanced(Stage.VERIFY, beside)
    return forest


def _try_index(
    db: Database, info: ObjectInfo
) -> tuple[ObjectInfo, list[Location] | CasweightsError]:
    try:
        return info, read_pack_index(db.store, info)
    except _UNSOUND as error:
        if isinstance(error, IntegrityError):
            with suppress(IntegrityError):  # something else that lies there
                error.suspect = Suspect(parse_id(PackId, names.PACKS, info.name), None)
        return info, error


def _verify_forest(
    db: Database,
    forest: _Forest,
    problems: list[CasweightsError],
    gone: set[str],
    *,
    quick: bool,
) -> tuple[set[ChunkId], list[Location]]:
    """Check all frames, each differing one after its base.

    Returns:
        The chunks that are sound, and the frames whose base is not there.
    """
    work = _TreeCheck(db, forest, gone, quick=quick)
    checked: set[Location] = set()
    for locations, errors in db.workers.map(work, forest.get(None, [])):
        problems += errors
        checked.update(locations)
        db.reporter.advanced(Stage.VERIFY, sum(place.frame.size for place in locations))
    places = (place for places in forest.values() for place in places)
    stranded = [place for place in places if place not in checked]
    for location, error in db.workers.map(partial(_try_payload, db), stranded):
        if isinstance(error, NotFoundError):
            gone.add(names.pack_name(location.pack))
        elif error is not None:
            problems.append(error)
        db.reporter.advanced(Stage.VERIFY, location.frame.size)
    return work.sound, stranded


def _try_payload(db: Database, location: Location) -> tuple[Location, CasweightsError | None]:
    try:
        read_payload(db.store, location)
    except (IntegrityError, NotFoundError) as error:
        return location, error
    return location, None


def _blame(stranded: Sequence[Location], lost: set[ChunkId]) -> Iterator[IntegrityError]:
    """What is to blame for lost chunks, among the frames whose base is not there.

    Others do no harm: packs come from elsewhere as a whole, and hold what no version here needs.
    """
    frames: dict[ChunkId, list[Location]] = {}
    for location in stranded:
        frames.setdefault(location.frame.chunk, []).append(location)
    pending, seen = sorted(lost), set(lost)
    while pending:
        for location in frames.get(pending.pop(), []):
            base = location.frame.base
            yield damaged_frame(location, f"its base {base} cannot be rebuilt")
            if base is not None and base not in seen:
                seen.add(base)
                pending.append(base)


class _TreeCheck:
    """Checks a whole frame and, chunk by chunk, all differences that build on it."""

    def __init__(self, db: Database, forest: _Forest, gone: set[str], *, quick: bool) -> None:
        self._db = db
        self._forest = forest
        self._gone = gone
        self._quick = quick
        self._lock = threading.Lock()
        self.sound: set[ChunkId] = set()

    def __call__(self, root: Location) -> tuple[list[Location], list[CasweightsError]]:
        checked: list[Location] = []
        problems: list[CasweightsError] = []
        pending: list[tuple[Location, int, memoryview | None]] = [(root, 1, None)]
        while pending:
            location, links, base = pending.pop()
            checked.append(location)
            try:
                _check_links(location, links)
                chunk = self._check(location, base)
            except IntegrityError as error:
                problems.append(error)
                continue
            except NotFoundError:
                self._gone.add(names.pack_name(location.pack))
                continue
            with self._lock:  # a chunk may have several frames, on several trees
                is_new = location.frame.chunk not in self.sound
                self.sound.add(location.frame.chunk)
            if is_new:
                children = self._forest.get(location.frame.chunk, [])
                pending += [(child, links + 1, chunk) for child in children]
        return checked, problems

    def _check(self, location: Location, base: memoryview | None) -> memoryview | None:
        """The frame's chunk, unless checksums are enough."""
        payload = read_payload(self._db.store, location)
        if self._quick:
            return None
        out = uninitialized(location.frame.raw_size)
        if base is not None:
            if len(base) != len(out):
                raise damaged_frame(location, "its base is of another size")
            out[:] = base
        decode_frame(location, payload, out)
        if not self._db.reader.is_right(location.frame.chunk, out):
            raise damaged_frame(location, "its bytes do not match the chunk's ID")
        return out


def _check_links(location: Location, links: int) -> None:
    if links > MAX_LINKS:
        raise damaged_frame(location, f"it takes more than {MAX_LINKS} frames to read")


def _verify_refs(
    db: Database,
    listed: Sequence[ObjectInfo],
    snapshots: set[SnapshotId],
    problems: list[CasweightsError],
) -> None:
    for info in listed:
        try:
            target = db.refs.target(info)
        except _UNSOUND as error:
            if not isinstance(error, NotFoundError) or db.refs.store.exists(info.name):
                problems.append(error)
            continue
        if target not in snapshots and not db.store.exists(names.snapshot_name(target)):
            ref = info.name.removesuffix(names.REF_SUFFIX)
            problems.append(_missing(f"{ref} points to {target}, which is not there"))


def _verify_names(db: Database, problems: list[CasweightsError]) -> None:
    """Objects that nothing of ours would have written."""
    folders = (names.PACKS, names.SNAPSHOTS, names.HEADS, names.TAGS, names.DAMAGED)
    problems.extend(
        IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{info.name} is no object of a casweights store")
        for info in db.store.list()
        if info.name != names.CONFIG and not info.name.startswith(folders)
    )
    problems.extend(
        IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{name} is no object of a store: it is {kind}")
        for name, kind in sorted(db.store.strays().items())
    )


def _missing(message: str) -> IntegrityError:
    return IntegrityError(ErrorCode.MISSING_CHUNK, message)
