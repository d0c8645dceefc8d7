"""The results of `gc` and of bringing back what it set aside. Sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.ids import SnapshotId


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedObject:
    """An object that `gc` sets aside.

    Attributes:
        name: Its name in the store.
        nbytes: Its size in bytes.
        created: When it was written, by the store's clock, in microseconds since 1970.
    """

    name: str
    nbytes: int
    created: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCollection:
    """Objects that were set aside and that a later call deletes.

    Attributes:
        id: The digits that name the collection, as for `undelete_collection`. They begin with
            ``replaced-`` if others replace the objects.
        objects: Number of objects.
        nbytes: Their size in bytes.
        since: When it was complete, by the store's clock, in microseconds since 1970; 0 if its run
            was killed, or has not ended yet.
    """

    id: str
    objects: int
    nbytes: int
    since: int

    @property
    def is_replaced(self) -> bool:
        """Whether others replace the objects: `maintain` and `repack` delete them, too."""
        return self.id.startswith("replaced-")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldStats:
    """What `gc` has written again, so that a later one can delete old objects.

    Attributes:
        chunks: Number of chunks that were encoded again, because their chains led through expired
            versions.
        objects: Number of old objects whose rest was copied.
        nbytes: Bytes that were written.
    """

    chunks: int
    objects: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectStats:
    """The result of `gc`.

    Attributes:
        applied: Whether it changed anything; if not, the other fields say what it would do.
        collection: The digits that name what was set aside, as for `undelete_collection`; None if
            nothing was.
        objects: The objects that were set aside.
        kept: Number of the packs, snapshots and archives that stay.
        restored: Names of objects that were brought back, because versions need them again.
        finished: The collections whose objects were deleted for good.
        finished_bytes: Size of these objects in bytes.
        pending: The collections that are set aside now.
        folded: What was written again; None if nothing was.
    """

    applied: bool
    collection: str | None
    objects: tuple[CollectedObject, ...]
    kept: int
    restored: tuple[str, ...]
    finished: tuple[str, ...]
    finished_bytes: int
    pending: tuple[PendingCollection, ...]
    folded: FoldStats | None = None

    @property
    def nbytes(self) -> int:
        """Size of the objects that were set aside, in bytes."""
        return sum(found.nbytes for found in self.objects)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceUse:
    """What holds the bytes of a store.

    `total` is the sum of the fields from `branches` to `free`.

    Attributes:
        total: Size of all packs, snapshots and archives in their places.
        branches: What the versions of branches need, with all versions before them.
        tags: What only versions of tags need, with those before them.
        bases: Frames that none of these needs for itself, but from which theirs are differences.
        moves: What only versions need that expired, or whose branch was deleted, and that the log
            of the branch still names, in a bucket: there, a version is a move of its branch.
        young: What is younger than the grace time, and needed by none of them.
        unused: What is needed by none of them, and lies in objects that are, or was named lately.
        free: What a collection can set aside.
        aside: The collections whose objects were set aside, and can be deleted a grace time later.
    """

    total: int
    branches: int
    tags: int
    bases: int
    moves: int
    young: int
    unused: int
    free: int
    aside: tuple[PendingCollection, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UndeleteStats:
    """The result of `undelete_collection`.

    Attributes:
        versions: The versions that were brought back.
        objects: Number of objects that were brought back.
        nbytes: Their size in bytes.
    """

    versions: tuple[SnapshotId, ...]
    objects: int
    nbytes: int
