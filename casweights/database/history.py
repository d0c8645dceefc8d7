"""Histories: a version, its first parent, and so on, with gaps where versions expired."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from casweights.errors import ErrorCode, IntegrityError
from casweights.format import names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from casweights.database.expired import ExpiredStore, ExpiredVersions
    from casweights.database.refs import Refs
    from casweights.database.snapshots import SnapshotStore
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.results import ExpiredVersion


class Stretch(NamedTuple):
    """A version of a history that stayed, and the versions before it that did not.

    Attributes:
        snapshot: The version.
        expired: The expired versions up to the one before it that stayed, newest first.
    """

    snapshot: Snapshot
    expired: Sequence[ExpiredVersion]


class Expired:
    """Which versions of a store have expired: they have a row, and no branch or tag names them.

    The names are read when the first row is found.
    """

    def __init__(self, rows: ExpiredVersions, refs: Refs) -> None:
        self.rows = rows
        self._refs = refs
        self._named: frozenset[SnapshotId] | None = None

    def find(self, snapshot: SnapshotId) -> ExpiredVersion | None:
        """Return the row of a version if it has expired, otherwise None."""
        row = self.rows.find(snapshot) if self.rows else None
        if row is None:
            return None
        if self._named is None:
            self._named = frozenset(self._refs.tips())
        return None if snapshot in self._named else row


class History:
    """Walks through histories. Safe for use from several threads.

    Args:
        snapshots: The versions of the store.
        records: Its records of expired versions.
        refs: Its branches and tags.
    """

    def __init__(self, snapshots: SnapshotStore, records: ExpiredStore, refs: Refs) -> None:
        self._snapshots = snapshots
        self._records = records
        self._refs = refs

    def expired(self) -> Expired:
        """Return which versions have expired by now."""
        return Expired(self._records.load(), self._refs)

    def walk(self, start: SnapshotId, expired: Expired | None = None) -> Iterator[Stretch]:
        """Yield a version and those before it that stayed, by first parents.

        Of expired versions, only records are read, so that their objects may be gone. The first
        version is yielded even if it has expired.

        Args:
            start: The version to begin with.
            expired: Which versions have expired; None to read the records.

        Raises:
            NotFoundError: A version is missing that has not expired.
            IntegrityError: A version is damaged, or a record forged.
        """
        expired = expired or self.expired()
        seen: set[SnapshotId] = set()  # only a forged store could contain a circle of parents
        current: SnapshotId | None = start
        gap: Sequence[ExpiredVersion] = ()
        while current is not None and (gap or current not in seen):
            snapshot = self._snapshots.load(current)
            if gap:
                check_follows(gap[-1], snapshot.id, snapshot.number, seen)
            seen.add(current)
            first = next(iter(snapshot.parents), None)
            gap = list(passed_over(first, snapshot.number, expired))
            seen.update(row.id for row in gap)
            yield Stretch(snapshot, gap)
            current = next(iter(gap[-1].parents), None) if gap else first
            if current and self._snapshots.is_shallow(snapshot.id):
                current = current if self._snapshots.exists(current) else None

    def line(self, start: SnapshotId) -> Iterator[SnapshotId]:
        """Yield the IDs of a version and of all before it, by first parents, expired or not."""
        for stretch in self.walk(start):
            yield stretch.snapshot.id
            yield from (row.id for row in stretch.expired)

    def parents(self, snapshot: SnapshotId, expired: Expired) -> Sequence[SnapshotId]:
        """Return the parents of a version, which need not exist; from its record if it has one.

        Raises:
            NotFoundError: The version is missing, and has not expired.
        """
        row = expired.find(snapshot)
        return self._snapshots.load(snapshot).parents if row is None else row.parents

    def known_parents(self, snapshot: Snapshot, expired: Expired) -> Sequence[SnapshotId]:
        """Return the parents of a version that was loaded.

        If it was copied without its history, those are left out that the store neither contains nor
        has recorded as expired.
        """
        present = self._snapshots.parents(snapshot)
        return [p for p in snapshot.parents if p in present or expired.rows.find(p) is not None]

    @contextmanager
    def reading(self, snapshot: SnapshotId) -> Iterator[Snapshot]:
        """Provide a version as `SnapshotStore.reading` does, with the errors of `explaining`."""
        with self.explaining(snapshot), self._snapshots.reading(snapshot) as found:
            yield found

    @contextmanager
    def explaining(self, snapshot: SnapshotId) -> Iterator[None]:
        """Report no damage in the ``with`` block if a version lacks chunks because it is gone.

        A collection may remove a version even while it is read.

        Raises:
            NotFoundError: The store does not contain the version any more; the error says when it
                expired, if it did.
        """
        try:
            yield
        except IntegrityError as error:
            if error.code is not ErrorCode.MISSING_CHUNK or self._snapshots.exists(snapshot):
                raise
            gone = self._snapshots.archives.missing(snapshot)
            for note in getattr(error, "__notes__", ()):
                gone.add_note(note)
            raise gone from error


def passed_over(
    before: SnapshotId | None, number: int, expired: Expired
) -> Iterator[ExpiredVersion]:
    """Yield the expired versions from a parent on.

    Each must have the number below that of its child, so that forged records lead nowhere.
    """
    while before is not None:
        number -= 1
        row = expired.find(before)
        if row is None or row.number != number:
            return
        yield row
        before = next(iter(row.parents), None)


def check_follows(
    row: ExpiredVersion, parent: SnapshotId, number: int, seen: Collection[SnapshotId]
) -> None:
    """Check that a version can be the parent of an expired one.

    Args:
        row: The row of the expired version.
        parent: The version to which the row leads.
        number: Its number.
        seen: Versions that come after it in the history.

    Raises:
        IntegrityError: It has another number or comes later, so the row is forged.
    """
    if number != row.number - 1 or parent in seen:
        raise IntegrityError(
            ErrorCode.CORRUPT_OBJECT,
            f"a record in {names.EXPIRED} is wrong: it says that version {row.id} with the number "
            f"{row.number} comes after {parent}, which has the number {number}. Delete "
            "the record: `casweights expire --apply` writes it again",
        )
