"""Space: what holds the bytes of a store, and which of them a collection frees."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from casweights.format import names
from casweights.operations.collections import SECOND, glance
from casweights.operations.marking import Marking, look, snapshot_in
from casweights.results import SpaceUse

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import timedelta

    from casweights.database import Database
    from casweights.ids import SnapshotId
    from casweights.results import CollectStats


def space(db: Database, planned: CollectStats, grace: timedelta) -> SpaceUse:
    """Find out what holds the bytes of a store.

    Args:
        db: The store.
        planned: What a collection would do now.
        grace: Its grace time.

    Raises:
        IntegrityError: Something that is needed is damaged or missing.
        UnsupportedError: The store's times are of no use.
        StoreError: The store could not be read.
    """
    free = {found.name for found in planned.objects}
    with closing(db.apart()) as own:
        now = glance(own.objects)
        work = _Count(own, free)
        branches = work.hold_also(own.refs.branches().values())
        tags = work.hold_also(own.refs.tags().values())
        bases = work.bases
        moves = work.hold_also(work.whole_moves()) - (bases - work.bases)
        young = work.young(now - int(grace.total_seconds()) * SECOND)
        return SpaceUse(
            total=work.total,
            branches=branches,
            tags=tags,
            bases=bases,
            moves=moves,
            young=young,
            unused=work.total - branches - tags - bases - moves - young - planned.nbytes,
            free=planned.nbytes,
            aside=planned.pending,
        )


class _Count:
    """Counts the bytes of a store that groups of versions hold, one group after the other.

    Args:
        db: A handle that remembers nothing.
        free: Names of the objects that nothing needs.
    """

    def __init__(self, db: Database, free: Collection[str]) -> None:
        places = look(db)
        self._db = db
        self._objects, self._packs = places.objects, places.packs
        self._free = free
        self._marking = Marking(db, places, places.objects, alone=True)
        self._held = 0

    @property
    def total(self) -> int:
        """Bytes of all objects in their places."""
        return sum(info.size for info in self._objects.values())

    @property
    def bases(self) -> int:
        """Bytes of the frames that are only bases of what the groups need."""
        frames, kept = self._marking.frames, self._marking.chunks
        return sum(at.frame.size for at in frames if at.frame.chunk not in kept)

    def hold_also(self, versions: Collection[SnapshotId]) -> int:
        """Count versions with their ancestors; return the bytes that only they hold so far."""
        before, marking = self._held, self._marking
        marking.keep(versions)
        frames = sum(at.frame.size for at in marking.frames if at.frame.chunk in marking.chunks)
        needed = [name for name in self._objects if marking.needs(name)]
        self._held = frames + sum(map(self._overhead, needed))
        return self._held - before

    def whole_moves(self) -> Sequence[SnapshotId]:
        """Return the versions that are moves of branches, and have no other copy."""
        listed = set(self._db.objects.list_names(names.SNAPSHOTS))
        holding = self._marking.places.holding
        found = [name for name in self._objects if name.startswith(names.SNAPSHOTS)]
        versions = map(snapshot_in, (name for name in found if name not in listed))
        return [version for version in versions if version is not None and version not in holding]

    def young(self, since: int) -> int:
        """Return the bytes of the objects that no group needs, and that are too young to go."""
        return sum(
            info.size
            for name, info in self._objects.items()
            if not (self._marking.needs(name) or name in self._free) and info.created > since
        )

    def _overhead(self, name: str) -> int:
        """Return the bytes of an object that are not those of frames."""
        pack = self._packs.get(name)
        return self._objects[name].size - (0 if pack is None else pack.frame_bytes)
