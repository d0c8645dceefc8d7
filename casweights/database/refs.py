"""Branches and tags. Both are logs of moves; that of a tag has one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.database.moves import latest, off_line, parse_move
from casweights.database.ref_writer import RefWriter
from casweights.database.reflog import RefLog
from casweights.errors import ConflictError, ErrorCode, NotFoundError, StoreError
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.system.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights.database.moves import Move
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectInfo, ObjectStore

    ListNames = Callable[[], names.RefNames]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest move of a branch.

    Attributes:
        branch: The branch's name.
        position: Number of the move, from 1.
        snapshot: Where it points.
    """

    branch: str
    position: int
    snapshot: SnapshotId


@dataclass(frozen=True, slots=True)
class Displaced:
    """A version that a writer moved a branch to, and that is not on the branch's line.

    Attributes:
        snapshot: The version.
        before: Where the branch was when its writer moved it, if that is known.
    """

    snapshot: SnapshotId
    before: SnapshotId | None


class _OwnMoves:
    """The moves of branches that one `Refs` made, until their writer was told of their fate.

    A move that was acknowledged may be displaced later; its writer is told once.
    """

    def __init__(self) -> None:
        self._heads: dict[str, list[Head]] = {}  # the last one, and displaced ones

    def add(self, head: Head, moves: Sequence[Move]) -> None:
        """Remember a move in place of earlier ones, except those to tell of."""
        self._heads[head.branch] = [*self._displaced(head.branch, moves), head]

    def pop_displaced(self, branch: str, moves: Sequence[Move]) -> SnapshotId | None:
        """A version that was displaced from the branch, which is not returned again."""
        displaced = self._displaced(branch, moves)
        if not displaced:
            return None
        self._heads[branch].remove(displaced[0])
        return displaced[0].snapshot

    def _displaced(self, branch: str, moves: Sequence[Move]) -> list[Head]:
        gone = {(move.position, move.snapshot) for move in off_line(moves)}
        return [
            head for head in self._heads.get(branch, ()) if (head.position, head.snapshot) in gone
        ]


class Refs:
    """The branches and tags of a store.

    To move a branch, take its head with ``head(branch, for_update=True)`` and pass that to
    `advance`, which refuses if the branch has moved since. A move that was acknowledged may be
    displaced later where the store does not create objects exclusively; then the next call that
    moves the branch raises. Calls that fail are looked up, see `RefWriter`.

    Attributes:
        store: Where they lie.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._heads = RefLog(store, names.HEADS)
        self._tags = RefLog(store, names.TAGS)
        self._head_writer = RefWriter(store, self._heads)
        self._tag_writer = RefWriter(store, self._tags)
        self._own_moves = _OwnMoves()

    def head(
        self, branch: str, *, for_update: bool = False, list_names: ListNames | None = None
    ) -> Head | None:
        """Where a branch is now; None if there is no such branch.

        Args:
            branch: The branch.
            for_update: For callers who will move it: wait until no writers compete for it, and
                make sure that the last move from here still counts.
            list_names: With `for_update`, gives the names of all branches, to which a new one is
                added. For callers who list them once for several branches.

        Raises:
            ConflictError: With `for_update`, the last move from here was displaced. This is
                raised once.
            InvalidInputError: With `for_update`, there is no such branch, and none can be made.
        """
        log, name = self._heads, names.check_ref_name(branch)
        moves = log.settled(name) if for_update else log.moves(name)
        if for_update and (snapshot := self._own_moves.pop_displaced(branch, moves)) is not None:
            raise _conflict(snapshot, f"{_displaced(branch, snapshot)}. {_WAYS_BACK}")
        if not moves:
            if for_update:
                (list_names or self.branch_names)().add(branch)
            return None
        last = latest(moves)
        snapshot = log.snapshot(last)
        return None if snapshot is None else Head(branch, last.position, snapshot)

    def advance(
        self,
        branch: str,
        expected: Head | None,
        snapshot: SnapshotId,
        move: bytes | None = None,
    ) -> Head:
        """Move a branch, if it still is where the caller saw it.

        Args:
            branch: The branch.
            expected: Where the caller saw it; None for a new one.
            snapshot: Where it goes.
            move: What `encode_move` made for that earlier.

        Raises:
            ConflictError: It has moved since.
            InvalidInputError: It is new, and some directory cannot hold it beside the others.
            IntegrityError: One of its moves is damaged.
            StoreError: The store could not be written. The error's `snapshot` is set if it is
                unknown whether the branch has moved.
        """
        names.check_ref_name(branch)
        position = expected.position if expected else 0
        if position + 1 >= 10**names.POSITION_DIGITS:  # nobody counts that far: a forgery
            where = names.move_name(names.HEADS, branch, position)
            raise corrupt(where, "no position can follow it")
        before = expected.snapshot if expected else None
        moved, moves = self._head_writer.append(branch, position, before, snapshot, move)
        if not moved:
            message = (
                f"branch {branch!r} was moved by another writer meanwhile. Your version is safe "
                f"in the store as {snapshot}; repeat the command to put it on top of theirs "
                "(nothing is uploaded twice)"
            )
            displaced = self._own_moves.pop_displaced(branch, moves)
            if displaced is not None:
                message += f". Besides, {_displaced(branch, displaced)}. {_WAYS_BACK}"
            raise _conflict(snapshot, message)
        head = Head(branch, position + 1, snapshot)
        self._own_moves.add(head, moves)
        return head

    def displaced(self) -> dict[str, list[Displaced]]:
        """Versions that writers moved branches to and that are not on their lines, by branch.

        The writer of one died before it could withdraw its move, is about to withdraw it, or was
        told that it had moved the branch, and then displaced; see docs/format.md.
        """
        found: dict[str, list[Displaced]] = {}
        for branch, moves in self._heads.all().items():
            for move in off_line(moves):
                snapshot = self._heads.snapshot(move)
                if snapshot is not None:
                    found.setdefault(branch, []).append(Displaced(snapshot, move.before))
        return found

    def drop_displaced(self, snapshot: SnapshotId, branch: str | None = None) -> bool:
        """Forget that a version was displaced from a branch, or from any; it stays in the store.

        Returns:
            Whether it was.
        """
        log = self._heads
        listed = log.all() if branch is None else {branch: log.moves(names.check_ref_name(branch))}
        dropped = [
            move
            for moves in listed.values()
            for move in off_line(moves)
            if log.snapshot(move) == snapshot
        ]
        log.remove(dropped)
        return bool(dropped)

    def take_in(self, snapshot: SnapshotId) -> None:
        """Forget that a version was displaced, because it has a name of its own now."""
        with suppress(StoreError):  # it is shown until it is dropped
            self.drop_displaced(snapshot)

    def branch_names(self) -> names.RefNames:
        """The names of all branches."""
        return names.RefNames(self._heads.all())

    def tag_names(self) -> names.RefNames:
        """The names of all tags."""
        return names.RefNames(self._tags.all())

    def landed(self, branch: str, snapshot: SnapshotId) -> Head | None:
        """Where a branch is now, if that is this version."""
        head = self.head(branch, for_update=True)
        return head if head is not None and head.snapshot == snapshot else None

    def doubt(self, head: Head) -> None:
        """Remember that the writer who moved a branch there was told of an error."""
        self._head_writer.doubt(head.branch, head.snapshot)

    def is_doubted(self, head: Head) -> bool:
        """Whether there was an error when the branch was moved there by this object."""
        return self._head_writer.is_doubted(head.branch, head.snapshot)

    def is_doubted_tag(self, tag: str) -> bool:
        """Whether there was an error when this object made the tag."""
        return self._tag_writer.is_doubted(tag)

    def branches(self) -> dict[str, SnapshotId]:
        """All branches and where they are, by name."""
        return self._targets(self._heads)

    def delete_branch(self, branch: str) -> None:
        """Forget a branch; its snapshots stay.

        Raises:
            NotFoundError: There is no such branch.
        """
        if not self._head_writer.delete(names.check_ref_name(branch)):
            raise no_ref("branch", branch)

    def tags(self) -> dict[str, SnapshotId]:
        """All tags and where they point, by name."""
        return self._targets(self._tags)

    def tag(self, tag: str) -> SnapshotId | None:
        """Where a tag points; None if there is no such tag."""
        moves = self._tags.moves(names.check_ref_name(tag))
        return self._tags.snapshot(latest(moves)) if moves else None

    def head_and_tag(self, name: str) -> tuple[Head | None, SnapshotId | None]:
        """Where the branch and the tag of this name are; asked for at the same time."""
        if self.store.capabilities.cheap_reads:
            return self.head(name), self.tag(name)
        with Threads(1, "casweights-refs") as threads:
            tag = threads.submit(self.tag, name)
            return self.head(name), tag.result()

    def create_tag(
        self, tag: str, snapshot: SnapshotId, *, list_names: ListNames | None = None
    ) -> None:
        """Make a tag.

        Args:
            tag: The tag.
            snapshot: Where it points.
            list_names: Gives the names of all tags, to which this one is added. For callers who
                list them once for several tags.

        Raises:
            ConflictError: A tag of this name points elsewhere.
            InvalidInputError: Some directory cannot hold it beside the other tags.
        """
        there = self._settled_tag(tag)
        if there is None:
            (list_names or self.tag_names)().add(tag)
            if self._tag_writer.append(tag, 0, None, snapshot)[0]:
                return
            # None if it was deleted since, or a listing does not show it yet.
            there = self._settled_tag(tag)
        if there != snapshot:
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"tag {tag!r} already points to {there or 'another version'}; tags do not move: "
                "delete it first or choose another name",
            )

    def _settled_tag(self, tag: str) -> SnapshotId | None:
        moves = self._tags.settled(names.check_ref_name(tag))
        return self._tags.snapshot(latest(moves)) if moves else None

    def delete_tag(self, tag: str) -> None:
        """Forget a tag; its snapshot stays.

        Raises:
            NotFoundError: There is no such tag.
        """
        if not self._tag_writer.delete(names.check_ref_name(tag)):
            raise no_ref("tag", tag)

    def objects(self) -> list[ObjectInfo]:
        """The objects of all branches and tags, whatever they are called."""
        return [*self.store.list(names.HEADS), *self.store.list(names.TAGS)]

    def target(self, info: ObjectInfo) -> SnapshotId:
        """The snapshot that this object of a ref points to.

        Raises:
            IntegrityError: It is damaged, or its name is not that of a move.
        """
        kind = names.HEADS if info.name.startswith(names.HEADS) else names.TAGS
        log = self._heads if kind == names.HEADS else self._tags
        return log.target(parse_move(info, kind))

    def tips(self) -> list[SnapshotId]:
        """Where all branches and tags are, from one listing."""
        listed = list(self.store.list(names.REFS))
        found = [*self._targets(self._heads, listed).values()]
        return list(dict.fromkeys([*found, *self._targets(self._tags, listed).values()]))

    def _targets(
        self, log: RefLog, infos: Sequence[ObjectInfo] | None = None
    ) -> dict[str, SnapshotId]:
        found = {ref: log.snapshot(latest(moves)) for ref, moves in log.all(infos).items()}
        return {ref: snapshot for ref, snapshot in found.items() if snapshot is not None}


_WAYS_BACK = (
    "Repeat the command to go on from where the branch is now; `casweights branch NAME ID` keeps "
    "the displaced version under a name"
)


def _displaced(branch: str, snapshot: SnapshotId) -> str:
    return (
        f"your version {snapshot} was displaced from branch {branch!r}: another writer's move "
        "counts in its place. It is safe in the store"
    )


def _conflict(snapshot: SnapshotId, message: str) -> ConflictError:
    error = ConflictError(ErrorCode.REF_MOVED, message)
    error.snapshot = snapshot
    return error


def no_ref(kind: str, name: str) -> NotFoundError:
    """The error for a branch or tag that is not there."""
    return NotFoundError(ErrorCode.REF_NOT_FOUND, f"the store has no {kind} {name!r}")
