"""What a version relies on is seen again, right before the move, if that was hours ago.

A collection deletes what nothing has named for a day at least. Writers name within hours what they
have seen; a machine that sleeps in between sees again what is still there. docs/design/033 has the
reasoning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.config import RELIANCE_SECONDS
from casweights.database.resolve import check_stands
from casweights.errors import ErrorCode, IntegrityError
from casweights.format import names
from casweights.ids import CarriedPackId
from casweights.system.clocks import Moment

if TYPE_CHECKING:
    from casweights.database import Database
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId


class Reliance(NamedTuple):
    """What a version relies on, and when that was last seen.

    Attributes:
        version: The version, with the frames that its object carries.
        is_first: Whether no branch names its parents.
        seen: When all of it was still there.
    """

    version: StoredSnapshot
    is_first: bool
    seen: Moment

    def renewed(self, db: Database, *, is_saved: bool = False) -> Reliance:
        """See everything again if it was last seen hours ago.

        Args:
            db: The store.
            is_saved: Whether the version has an object of its own by now.

        Raises:
            NotFoundError: A parent is gone.
            IntegrityError: A chunk is gone, or the version itself.
            StoreError: The store could not be read.
        """
        if self.seen.age() < RELIANCE_SECONDS:
            return self
        now, snapshot = Moment.now(), self.version.snapshot
        for parent in snapshot.parents if self.is_first else ():
            check_stands(db, parent)
        stands = not is_saved or db.snapshots.archives.stands(snapshot.id)
        if not stands:  # a repetition writes it again
            db.index.drop([names.snapshot_name(snapshot.id)])
        own, wanted = CarriedPackId(snapshot.id), self._relied_on()
        packs = [pack for pack in self.version.table.packs if pack != own]
        if db.index.recheck(packs):
            db.index.look_up(wanted)
        db.index.prepare_packs(packs)  # other processes may have written them
        if not stands or None in db.index.having(wanted):
            raise IntegrityError(
                ErrorCode.MISSING_CHUNK,
                "the store has lost chunks of the new version since they were looked up, hours "
                "ago: nothing was committed. Repeat the command, which stores them again",
            )
        return self._replace(seen=now)

    def _relied_on(self) -> list[ChunkId]:
        """Return the chunks that the object of the version does not carry, but needs."""
        carried = {frame.chunk: frame for frame in self.version.frames}
        bases = (base for frame in carried.values() for base in frame.bases)
        needed = dict.fromkeys([*self.version.snapshot.stored_chunks(), *bases])
        return [chunk for chunk in needed if chunk not in carried]
