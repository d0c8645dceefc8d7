"""The order in which the versions of a store are stored again."""

from __future__ import annotations

from graphlib import TopologicalSorter
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from casweights.database import Database
    from casweights.format.lineage import Origin
    from casweights.ids import SnapshotId

    Bases = Mapping[SnapshotId, SnapshotId | None]


class Placed(NamedTuple):
    """The facts that are kept of every version; the chunk IDs of all would not fit in memory.

    Attributes:
        time: When it was committed.
        parent: Its first parent, if the store has it.
        size: Its bytes.
        lineage: The versions that it was made from.
    """

    time: datetime
    parent: SnapshotId | None
    size: int
    lineage: Sequence[Origin]


def placed(db: Database) -> dict[SnapshotId, Placed]:
    """Return all versions of a store, by age, each after its first parent.

    Raises:
        IntegrityError: A version's object is damaged.
        StoreError: The store could not be read.
    """
    ids = set(db.snapshots.ids())
    found = {}
    for version in ids:
        stored = db.snapshots.load_stored(version)
        snapshot = stored.snapshot
        parent = next((one for one in snapshot.parents[:1] if one in ids), None)
        found[version] = Placed(snapshot.time, parent, snapshot.size, stored.lineage)
    return {version: found[version] for version in in_order(found)}


def in_order(
    versions: Mapping[SnapshotId, Placed], above: Bases | None = None
) -> Iterator[SnapshotId]:
    """Yield versions, the oldest first, but each after the one that it is built on.

    Args:
        versions: The versions.
        above: What each version of a tree is built on; for others it is the first parent.
    """
    bases = {version: known.parent for version, known in versions.items()} | dict(above or {})
    after: TopologicalSorter[SnapshotId] = TopologicalSorter()
    for version, base in bases.items():
        after.add(version, *() if base is None else (base,))
    after.prepare()
    ready: list[tuple[datetime, SnapshotId]] = []
    while after.is_active():
        for version in after.get_ready():
            heappush(ready, (versions[version].time, version))
        _, oldest = heappop(ready)
        yield oldest
        after.done(oldest)
