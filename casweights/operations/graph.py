"""Graph: the versions of several branches, with their parents and what they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Literal, NamedTuple

from casweights.database.history import check_follows, passed_over
from casweights.ids import SnapshotId
from casweights.results import BaseVersion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from casweights.database import Database
    from casweights.database.history import Expired
    from casweights.format.manifest import Snapshot
    from casweights.format.snapshot import StoredSnapshot
    from casweights.results import ExpiredVersion

    State = Literal["present", "expired", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphVersion:
    """A version of a graph.

    Attributes:
        snapshot: The version.
        parents: The versions that it comes after in the graph: its parents, or what stayed of the
            versions before them.
        expired: The expired versions between it and the first of these, newest first.
        lineage: The versions that it was made from; empty if that is its first parent alone.
    """

    snapshot: Snapshot
    parents: tuple[SnapshotId, ...]
    expired: tuple[ExpiredVersion, ...]
    lineage: tuple[BaseVersion, ...]


def lineage(db: Database, version: SnapshotId) -> tuple[BaseVersion, ...]:
    """Return the versions that a version was made from, as its object lists them.

    Raises:
        NotFoundError: The version does not exist.
        IntegrityError: Its object is damaged.
    """
    return _States(db, db.history.expired()).of(db.snapshots.load_stored(version))


def graph(db: Database, heads: Iterable[SnapshotId]) -> Iterator[GraphVersion]:
    """Yield some versions and all before them, by all parents, the newest first.

    Each comes after those of its children by which it was reached. Of expired versions, only
    records are read.

    Args:
        db: The store.
        heads: The versions to begin with.

    Raises:
        NotFoundError: A version is missing that has not expired.
        IntegrityError: A version is damaged, or a record forged.
    """
    expired = db.history.expired()
    states, front, seen = _States(db, expired), _Front(), set[SnapshotId]()
    for head in dict.fromkeys(heads):
        seen.add(head)
        front.add(db.snapshots.load_stored(head))
    while front:
        stored, time = front.pop()
        steps = list(_steps(db, stored.snapshot, expired))
        for step in steps:
            if step.parent is not None and step.parent not in seen:
                seen.add(step.parent)
                before = db.snapshots.load_stored(step.parent)
                if step.expired:
                    number = before.snapshot.number
                    check_follows(step.expired[-1], step.parent, number, ())
                front.add(before, time)
        yield GraphVersion(
            snapshot=stored.snapshot,
            parents=tuple(step.parent for step in steps if step.parent is not None),
            expired=tuple(steps[0].expired) if steps else (),
            lineage=states.of(stored),
        )


class _Front:
    """Versions whose children were passed, by time."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, StoredSnapshot, datetime]] = []
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, stored: StoredSnapshot, latest: datetime | None = None) -> None:
        """Add a version, with the time of its child, after which it cannot be: clocks differ."""
        time = min(stored.snapshot.time, latest or stored.snapshot.time)
        self._count += 1
        heappush(self._waiting, (-time.timestamp(), self._count, stored, time))

    def pop(self) -> tuple[StoredSnapshot, datetime]:
        """Take out the newest version, and return it with its time."""
        return heappop(self._waiting)[2:]


class _Step(NamedTuple):
    """The way from a version to what stayed before it, past expired versions."""

    parent: SnapshotId | None
    expired: Sequence[ExpiredVersion]


def _steps(db: Database, version: Snapshot, expired: Expired) -> Iterator[_Step]:
    """Yield the way past each parent that the store knows."""
    for parent in db.history.known_parents(version, expired):
        row, is_first = expired.find(parent), parent == version.parents[0]
        number = version.number if row is None or is_first else row.number + 1
        passed = list(passed_over(parent, number, expired))
        current = next(iter(passed[-1].parents), None) if passed else parent
        if current and db.snapshots.is_shallow(version.id) and not db.snapshots.exists(current):
            current = None
        yield _Step(current, passed)


class _States:
    """Finds out what has become of the versions that others were made from."""

    def __init__(self, db: Database, expired: Expired) -> None:
        self._db = db
        self._expired = expired
        self._known: dict[SnapshotId, State] = {}

    def of(self, stored: StoredSnapshot) -> tuple[BaseVersion, ...]:
        """Return the lineage of a version."""
        version, origins = stored.snapshot, stored.lineage
        self._look_up([one.snapshot for one in origins if one.snapshot not in self._known])
        return tuple(
            BaseVersion(
                snapshot=one.snapshot,
                nbytes=one.nbytes,
                share=one.nbytes / version.size,
                is_parent=one.snapshot in version.parents,
                state=self._known[one.snapshot],
            )
            for one in origins
        )

    def _look_up(self, versions: Sequence[SnapshotId]) -> None:
        present = self._db.snapshots.archives.present(versions) if versions else ()
        for version in versions:
            if self._expired.find(version) is not None:
                self._known[version] = "expired"
            else:
                self._known[version] = "present" if version in present else "missing"
