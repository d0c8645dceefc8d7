"""What a move relies on is seen again, right before the move, if that was hours ago.

A collection deletes what nothing has named for a day at least. Writers name within hours what they
have seen; a machine that sleeps in between sees again what is still there. Every move of a branch
or tag takes such a `Sighting`. docs/design/033 has the reasoning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING

from casweights.config import RELIANCE_SECONDS
from casweights.database.resolve import check_stands
from casweights.errors import ErrorCode, IntegrityError
from casweights.format import names
from casweights.ids import CarriedPackId
from casweights.system.clocks import Moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.database import Database
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId, SnapshotId


class Sighting(ABC):
    """When something was last seen. A call sees it again if that was hours ago.

    Args:
        seen: When it was there.
    """

    def __init__(self, seen: Moment) -> None:
        self._seen = seen

    @abstractmethod
    def look(self) -> object:
        """Raise an error if what was seen is gone, or put it in its place again."""

    def __call__(self) -> None:
        """See it again if it was last seen hours ago, until a look takes no hours."""
        while self._seen.age() >= RELIANCE_SECONDS:
            now = Moment.now()
            self.look()
            self._seen = now


class Looked(Sighting):
    """What a function sees, and has seen right now.

    Args:
        look: Sees it, or puts it in its place again; called at once.
    """

    def __init__(self, look: Callable[[], object]) -> None:
        super().__init__(Moment.now())
        self._look = look
        look()

    def look(self) -> object:
        """Call the function."""
        return self._look()


def standing(db: Database, version: SnapshotId) -> Sighting:
    """See that a version is in its place, which is complete then, before something names it.

    Raises:
        NotFoundError: The version is not in its place.
    """
    db.announce()
    return Looked(partial(check_stands, db, version))


class Reliance(Sighting):
    """What a new version relies on, and when that was last seen.

    Args:
        db: The store.
        version: The version, with the frames that its object carries.
        is_first: Whether no branch names its parents.
        seen: When all of it was still there.

    Attributes:
        is_saved: Whether the version has an object of its own by now.
    """

    def __init__(
        self, db: Database, version: StoredSnapshot, seen: Moment, *, is_first: bool
    ) -> None:
        super().__init__(seen)
        self._db = db
        self._version = version
        self._is_first = is_first
        self.is_saved = False

    def look(self) -> None:
        """See all of it.

        Raises:
            NotFoundError: A parent is gone.
            IntegrityError: A chunk is gone, or the version itself.
            StoreError: The store could not be read.
        """
        db, snapshot = self._db, self._version.snapshot
        for parent in snapshot.parents if self._is_first else ():
            check_stands(db, parent)
        stands = not self.is_saved or db.snapshots.archives.stands(snapshot.id)
        if not stands:  # a repetition writes it again
            db.index.drop([names.snapshot_name(snapshot.id)])
        own, wanted = CarriedPackId(snapshot.id), self._relied_on()
        packs = [pack for pack in self._version.table.packs if pack != own]
        if db.index.recheck(packs):
            db.index.find_again(wanted)
        db.index.prepare_packs(packs)  # other processes may have written them
        if not stands or None in db.index.having(wanted):
            raise IntegrityError(
                ErrorCode.MISSING_CHUNK,
                "the store has lost chunks of the new version since they were looked up, hours "
                "ago: nothing was committed. Repeat the command, which stores them again",
            )

    def _relied_on(self) -> list[ChunkId]:
        """Return the chunks that the object of the version does not carry, but needs."""
        carried = {frame.chunk: frame for frame in self._version.frames}
        bases = (base for frame in carried.values() for base in frame.bases)
        needed = dict.fromkeys([*self._version.snapshot.stored_chunks(), *bases])
        return [chunk for chunk in needed if chunk not in carried]
