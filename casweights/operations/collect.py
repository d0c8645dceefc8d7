"""Collect: set aside what nothing needs, and later delete what was set aside.

A run marks once. It brings back what is needed and was set aside, sets aside what is old and not
needed, and deletes what earlier runs set aside long enough ago. docs/design/033 has the reasoning.
"""

from __future__ import annotations

from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.config import LEAST_GRACE, RELIANCE_SECONDS
from casweights.database.deleting import check_may_delete
from casweights.database.moves import version_in
from casweights.errors import (
    CasweightsError,
    ConflictError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
    StoreError,
)
from casweights.format import names
from casweights.format.collection import (
    Part,
    Plan,
    PlannedObject,
    Settled,
    mark,
    part_name,
    settled_name,
)
from casweights.format.hashing import blake3_256
from casweights.operations.collections import (
    SECOND,
    Collection,
    glance,
    list_collections,
    looking,
    new_collection,
    notes,
)
from casweights.operations.fold import fold
from casweights.operations.marking import Marking, Places, list_candidates, look, named_versions
from casweights.operations.merging import Budget
from casweights.operations.moving import bring_back, finish, set_aside
from casweights.operations.replaced import check_replaced
from casweights.operations.replacements import check_replacing
from casweights.operations.signing import drop_signatures
from casweights.results import CollectedObject, CollectStats, FoldStats, PendingCollection
from casweights.stores.optional import SupportsWriters
from casweights.system.clocks import Moment

if TYPE_CHECKING:
    from collections.abc import Collection as Some
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta

    from casweights.database import Database
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectInfo, ObjectStore

_A_YEAR = 365 * 86400 * SECOND
_MAX_NEWCOMERS = 3  # looks at versions that others name while this run marks


def collect(
    db: Database,
    *,
    grace: timedelta,
    apply: bool,
    only: Some[str] | None = None,
    finish_only: bool = False,
    confirm: str | None = None,
    fold: bool = True,
) -> CollectStats:
    """Set aside what nothing needs, and delete what was set aside a grace time ago.

    Args:
        db: The store.
        grace: The grace time.
        apply: Whether to change anything.
        only: Names of the objects that may be set aside, and digits of the collections that may be
            deleted; None for all.
        finish_only: Set nothing aside.
        confirm: The store's URL, for a grace time of less than a day.
        fold: Whether to write again what is needed of objects that hold much that is not.

    Raises:
        InvalidInputError: The grace time is too short.
        IntegrityError: Something that is needed is damaged or missing; nothing was deleted.
        UnsupportedError: The store's times are of no use; nothing was deleted.
        ConflictError: Another collection is at work, or somebody writes to a store for which the
            grace time is less than a day; nothing was set aside.
        StoreError: The store could not be read or written, or this client may not delete objects.
    """
    seconds = _checked_grace(db, grace, confirm)
    if apply:
        check_may_delete(db.store, "A collection deletes what it has copied aside")
    if apply and grace < LEAST_GRACE:
        _check_alone(db)
    own = db.apart(workers=db.workers.count, reporter=db.reporter)
    with closing(own), looking(own.objects) if apply else nullcontext(glance(own.objects)) as now:
        work = _Collector(own, now, seconds, fold=fold)
        return work.run(apply=apply, only=only, finish_only=finish_only)


def _checked_grace(db: Database, grace: timedelta, confirm: str | None) -> int:
    """Return the grace time in seconds."""
    seconds = int(grace.total_seconds())
    if grace >= LEAST_GRACE:
        return seconds
    can_be_alone = db.store.capabilities.cheap_reads and db.store.capabilities.clock_skew is None
    if seconds < 0 or not can_be_alone:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"the grace time must be at least 24 hours for {db.store.url}",
        )
    if confirm != db.store.url:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            "a grace time of less than 24 hours loses versions if anybody else writes to the "
            f"store: make sure that nobody does, and confirm with its name, {db.store.url}",
        )
    return seconds


def _check_alone(db: Database) -> None:
    """Check that nobody else writes to a store, if it can tell.

    Raises:
        ConflictError: Somebody may do so.
    """
    able = db.store.ability(SupportsWriters)
    if able is not None and (others := able.other_writers()):
        raise ConflictError(
            ErrorCode.BUSY,
            f"a grace time of less than a day loses what others are writing to {db.store.url}, and "
            f"{others} other open {'handle' if others == 1 else 'handles'} may do so: nothing was "
            "collected. End the programs that use it, or leave the grace time as it is",
        )


@dataclass(frozen=True, slots=True)
class _Marked:
    """What a run has found.

    Attributes:
        dead: The objects that are old, and that nothing needs.
        kept: Number of the other objects in their places.
        restored: The names of objects that are needed and were not in their places.
        named: The versions that branches and tags name.
    """

    dead: list[ObjectInfo]
    kept: int
    restored: list[str]
    named: set[SnapshotId]


class _Collector:
    """One run over a store.

    Args:
        db: A handle that remembers nothing of the store.
        now: The store's time.
        grace: The grace time in seconds.
        fold: As in `collect`.
    """

    def __init__(self, db: Database, now: int, grace: int, *, fold: bool) -> None:
        self._db = db
        self._objects = db.objects
        self._now = now
        self._grace = grace
        self._may_fold = fold
        self._begin = Moment.now()
        self._past: dict[str, Collection] = {}
        self._collection: str | None = None
        self._whole_moves: set[str] = set()  # names of the versions that are moves of branches

    def run(self, *, apply: bool, only: Some[str] | None, finish_only: bool) -> CollectStats:
        """Do one run; the arguments are those of `collect`."""
        listed = list_candidates(self._db)  # before the refs: what is written later is young
        found = list_collections(self._objects)
        begun = [one for one in found.values() if one.aside or one.parts.keys() - {Part.LOOK}]
        self._past = {one.id: one for one in begun}
        if apply:
            self._end_broken_off(found.values())
        note = self._note(listed)
        if self._is_settled(note):
            kept = len(listed.keys() | self._whole_moves)
            return self._stats(_Marked([], kept, [], set()), [], applied=apply)
        old = {name for name, info in listed.items() if self._is_old(info)}
        going = set() if finish_only else old if only is None else old.intersection(only)
        due = [one for one in self._past.values() if self._is_due(one)]
        due = [one for one in due if only is None or one.id in only]
        if apply:
            self._check_replacing(due)
        marked = self._mark(listed, going)
        folded = None
        if apply:
            self._bring_back(marked.restored)
            self._set_aside(marked.dead)
            for one in due:
                doomed = [info.name for info in one.aside.values()]
                finish(self._objects, one.id, doomed, self._check_time)
            if self._may_fold and going == old:
                folded = self._fold(old, marked.named)
            if marked.dead or due:
                drop_signatures(self._db)
            left = (one for one in self._past.values() if one not in due)
            waits = marked.dead or folded or any(map(self._is_urgent, left))
            is_settled = going == old and not waits
            self._keep_note(note if is_settled else None)
        return self._stats(marked, due, applied=apply, folded=folded)

    def _check_replacing(self, due: Iterable[Collection]) -> None:
        """Note damage of what replaces objects of collections, so that marking brings them back."""
        replaced = sorted(one.id for one in due if one.is_of_replaced)
        for _ in check_replacing(self._db, replaced, Budget()):
            pass

    def _fold(self, old: set[str], named: set[SnapshotId]) -> FoldStats | None:
        """Write again what is needed of old objects; what that replaces goes at a later run."""
        candidates = {name for name in old if not _is_in_doubt(self._db, name)}
        try:
            done = fold(self._db, candidates, named)
        except NotFoundError:  # maintenance has merged what was to be read: a later run goes on
            return None
        return done if done.nbytes else None

    def _is_old(self, info: ObjectInfo) -> bool:
        return 0 < info.created <= self._now - self._grace * SECOND

    def _is_due(self, found: Collection) -> bool:
        """Whether the grace time of a collection is over."""
        return 0 < found.due(self._grace) <= self._now

    def _is_urgent(self, found: Collection) -> bool:
        """Whether a run has to look after a collection: others wait for their grace time."""
        return not found.is_of_replaced or self._is_due(found) or Part.END not in found.parts

    def _is_at_work(self, found: Collection) -> bool:
        """Whether the run that made a collection may still move objects."""
        if Part.END in found.parts:
            return False
        return found.parts.get(Part.PLAN, 0) > self._now - self._limit * SECOND

    @property
    def _limit(self) -> float:
        """Seconds after which a run has stopped; none if the user says that nobody else runs."""
        return RELIANCE_SECONDS if self._grace >= LEAST_GRACE.total_seconds() else 0

    def _mark(self, listed: Mapping[str, ObjectInfo], old: set[str]) -> _Marked:
        """Find out what is needed.

        Args:
            listed: The objects that were listed before the refs are read.
            old: Names of those that may go.
        """
        db = self._db
        db.heed_findings()
        named = named_versions(db, self._is_old)
        places = look(db)
        _check_complete(self._objects, listed, places)
        there = old & places.objects.keys()
        going = {name for name in there if not _is_in_doubt(db, name)}
        marking = Marking(db, places, going)
        marking.keep_with_staying(named)
        self._keep_newcomers(marking)
        dead = [listed[name] for name in sorted(going) if not marking.needs(name)]
        check_replaced(db, marking, [info.name for info in dead])
        kept = len(marking.places.objects) - len(dead)
        return _Marked(dead, kept, sorted(marking.restored), named)

    def _keep_newcomers(self, marking: Marking) -> None:
        """Keep the versions that others have named in the meantime."""
        for _ in range(_MAX_NEWCOMERS):
            new = named_versions(self._db, self._is_old) - marking.versions
            if not new:
                return
            marking.look_again()
            marking.keep(new)

    def _end_broken_off(self, found: Iterable[Collection]) -> None:
        """Begin the grace time of collections whose runs were killed, and remove their clocks."""
        for one in found:
            if 0 < one.parts.get(Part.LOOK, 0) <= self._now - RELIANCE_SECONDS * SECOND:
                self._objects.delete(part_name(one.id, Part.LOOK))
            if one.id in self._past and Part.END not in one.parts and not self._is_at_work(one):
                self._objects.put(part_name(one.id, Part.END), [mark()])

    def _bring_back(self, former: Sequence[str]) -> None:
        """Copy objects back to their places."""
        # Listed again: other runs may have set some aside since, or brought them back.
        past = list_collections(self._objects).values()
        where = {name: info.name for found in past for name, info in found.aside.items()}
        bring_back(self._objects, where, former)

    def _set_aside(self, dead: Sequence[ObjectInfo]) -> None:
        """Move objects aside, as a new collection."""
        if not dead:
            return
        digits = new_collection()
        plan = Plan(
            now=self._now,
            grace=self._grace,
            objects=[PlannedObject(info.name, info.size, max(0, info.created)) for info in dead],
        )
        slices = set_aside(self._objects, digits, plan, self._check_time)
        next(slices)  # the plan
        self._make_way(digits)
        try:
            for _ in slices:
                pass
        except BaseException:
            with suppress(CasweightsError):
                self._objects.put(part_name(digits, Part.END), [mark()])
            raise
        self._collection = digits

    def _make_way(self, mine: str) -> None:
        """Withdraw a collection if another one is at work.

        Of two that begin at once, at least one sees the other. Where neither does, because listings
        lag, each sets aside what it alone finds dead, and later runs bring back what is needed.

        Raises:
            ConflictError: Another one is at work.
        """
        found = list_collections(self._objects)
        ours = (found[mine].parts.get(Part.PLAN, 0), mine) if mine in found else (0, mine)
        for other in found.values():
            theirs = (other.parts.get(Part.PLAN, 0), other.id)
            is_rival = other.id != mine and not other.is_of_replaced and self._is_at_work(other)
            if is_rival and theirs < ours:
                self._objects.delete(part_name(mine, Part.PLAN))
                raise ConflictError(
                    ErrorCode.BUSY,
                    f"collection {other.id} is at work: nothing was set aside. If its run was "
                    "killed, repeat the command 6 hours after it began",
                )

    def _check_time(self) -> None:
        """Check that what was marked is still recent, and that nobody came for whom it is not.

        Raises:
            StoreError: It is not.
            ConflictError: Somebody came, and the grace time is less than a day.
        """
        if self._grace < LEAST_GRACE.total_seconds():
            _check_alone(self._db)
        if self._begin.age() > RELIANCE_SECONDS:
            raise StoreError(
                ErrorCode.IO_FAILED,
                "the collection took more than 6 hours, so what it has marked is out of date: it "
                "stopped. Repeat the command to continue",
            )

    def _note(self, listed: Mapping[str, ObjectInfo]) -> Settled:
        """Return the note that there is nothing to do: true until this changes, or grows old."""
        moves = self._db.refs.objects()
        whole = {version for info in moves if (version := version_in(info.name)) is not None}
        self._whole_moves = set(map(names.snapshot_name, whole))
        infos = [*listed.values(), *moves, *self._db.objects.list(names.DAMAGED)]
        rows = sorted(f"{info.name} {info.size} {info.created}" for info in infos)
        digest = blake3_256("\n".join([str(self._grace), *rows]).encode()).hex()
        young = [info.created for info in listed.values() if not self._is_old(info)]
        due = [created + self._grace * SECOND for created in young if created > 0]
        due += [one.due(self._grace) for one in self._past.values() if not self._is_urgent(one)]
        return Settled(digest, min(due, default=self._now + _A_YEAR))

    def _is_settled(self, now: Settled) -> bool:
        """Whether an earlier run noted that there is nothing to do."""
        known = [] if any(map(self._is_urgent, self._past.values())) else notes(self._objects)
        return any(note.digest == now.digest and self._now < note.until for note in known)

    def _keep_note(self, note: Settled | None) -> None:
        """Keep a note, and remove all others."""
        old = {settled_name(other) for other in notes(self._objects)}
        new = set() if note is None else {settled_name(note)}
        for name in new - old:
            self._objects.put(name, [mark()])
        if old - new:
            self._objects.delete_all(sorted(old - new))

    def _stats(
        self,
        marked: _Marked,
        due: Sequence[Collection],
        *,
        applied: bool,
        folded: FoldStats | None = None,
    ) -> CollectStats:
        pending = list_collections(self._objects).values()
        gone = {found.id for found in due}
        return CollectStats(
            applied=applied,
            collection=self._collection,
            objects=tuple(
                CollectedObject(name=info.name, nbytes=info.size, created=info.created)
                for info in marked.dead
            ),
            kept=marked.kept,
            restored=tuple(marked.restored),
            folded=folded,
            finished=tuple(sorted(gone)),
            finished_bytes=sum(found.nbytes for found in due),
            pending=tuple(
                PendingCollection(
                    id=found.id,
                    objects=len(found.aside),
                    nbytes=found.nbytes,
                    since=found.parts.get(Part.END, 0),
                )
                for found in pending
                if found.aside and found.id not in gone
            ),
        )


def _is_in_doubt(db: Database, name: str) -> bool:
    """Whether a finding is about a pack or a snapshot, which stays then: `repair` may need it."""
    return not name.startswith(names.ARCHIVES) and db.index.is_damaged(names.pack_of(name))


def _check_complete(objects: ObjectStore, before: Mapping[str, ObjectInfo], places: Places) -> None:
    """Check that later listings show what an earlier one did, unless it is gone.

    Raises:
        StoreError: One does not.
    """
    now = {name for name in places.objects if name in places.packs or name in places.archives}
    lacking = [name for name in before if name not in now]
    for name in sorted(objects.present(lacking) if lacking else ()):
        raise StoreError(
            ErrorCode.IO_FAILED,
            f"a listing of {objects.url} lacks {name}, which exists, so its listings cannot be "
            "relied on: nothing was deleted. Repeat the command",
        )
