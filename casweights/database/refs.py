"""Branches and tags. Both are logs of moves; that of a tag has one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.database import reflog
from casweights.database.reflog import RefLog, encode_move, latest, parse_move
from casweights.errors import ConflictError, ErrorCode, NotFoundError, StoreError
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.system.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights.database.reflog import Move
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
    """A version that a writer moved a branch to, and that is not part of the branch's way.

    Attributes:
        snapshot: The version.
        before: Where the branch was when its writer moved it, if that is known.
    """

    snapshot: SnapshotId
    before: SnapshotId | None


class Refs:
    """The branches and tags of a store.

    An error does not tell whether a move was made: the store may have failed right after it, or its
    answer may be lost. So whatever fails here is looked up, and is no error if it was done. Where
    that fails too, it is kept in mind, so that whoever repeats the call does nothing twice.

    Attributes:
        store: Where they lie.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._doubts: dict[str, SnapshotId | None] = {}  # where refs may be; None: deleted
        self._heads = RefLog(store, names.HEADS)
        self._tags = RefLog(store, names.TAGS)
        self._moved: dict[str, list[Head]] = {}  # by this one: the last, and those to tell of

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
        if for_update and (snapshot := self._forget_displaced(branch, moves)) is not None:
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
        moved, moves = self._append(self._heads, branch, position, before, snapshot, move)
        if not moved:
            message = (
                f"branch {branch!r} was moved by another writer meanwhile. Your version is safe "
                f"in the store as {snapshot}; repeat the command to put it on top of theirs "
                "(nothing is uploaded twice)"
            )
            displaced = self._forget_displaced(branch, moves)
            if displaced is not None:
                message += f". Besides, {_displaced(branch, displaced)}. {_WAYS_BACK}"
            raise _conflict(snapshot, message)
        head = Head(branch, position + 1, snapshot)
        self._moved[branch] = [*self._displaced_here(branch, moves), head]
        return head

    def _displaced_here(self, branch: str, moves: Sequence[Move]) -> list[Head]:
        """Which moves from here do not count any more, and nobody was told."""
        gone = {(move.position, move.snapshot) for move in reflog.beside(moves)}
        return [
            head for head in self._moved.get(branch, ()) if (head.position, head.snapshot) in gone
        ]

    def _forget_displaced(self, branch: str, moves: Sequence[Move]) -> SnapshotId | None:
        """A version that the branch was moved to from here, if another one took its place."""
        displaced = self._displaced_here(branch, moves)
        if not displaced:
            return None
        self._moved[branch].remove(displaced[0])
        return displaced[0].snapshot

    def displaced(self) -> dict[str, list[Displaced]]:
        """Versions that writers moved branches to and that are not part of their ways, by branch.

        The writer of one died before it could withdraw its move, is about to withdraw it, or was
        told that it had moved the branch, and then displaced; see docs/format.md.
        """
        found: dict[str, list[Displaced]] = {}
        for branch, moves in self._heads.all().items():
            for move in reflog.beside(moves):
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
            for move in reflog.beside(moves)
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
        """Keep in mind that whoever moved a branch there was told of an error."""
        self._doubts[names.HEADS + head.branch] = head.snapshot

    def is_doubted(self, head: Head) -> bool:
        """Whether there was an error when the branch was moved there by this object."""
        return self._doubts.get(names.HEADS + head.branch) == head.snapshot

    def is_doubted_tag(self, tag: str) -> bool:
        """Whether there was an error when this object made the tag."""
        return names.TAGS + tag in self._doubts

    def _append(
        self,
        log: RefLog,
        ref: str,
        after: int,
        before: SnapshotId | None,
        snapshot: SnapshotId,
        move: bytes | None = None,
    ) -> tuple[bool, list[Move]]:
        """Make a move; see `RefLog.append`. An error after it was made is none."""
        key = log.kind + ref
        try:
            made = log.append(ref, after, before, snapshot, move)
        except BaseException as error:
            self._doubts[key] = snapshot
            if not isinstance(error, Exception):
                raise
            moves = self._moves_if_made(log, ref, after, before, snapshot, error)
            if not moves:
                raise
            return True, moves
        self._doubts.pop(key, None)
        return made

    def _moves_if_made(
        self,
        log: RefLog,
        ref: str,
        after: int,
        before: SnapshotId | None,
        snapshot: SnapshotId,
        error: Exception,
    ) -> list[Move]:
        """The moves of a ref, if a move was made although that failed; else none.

        Raises:
            StoreError: It cannot be found out.
        """
        try:
            moves = log.settled(ref)
            last = latest(moves) if moves else None
            if last is None or (last.position, log.snapshot(last)) != (after + 1, snapshot):
                return []
            bases = [log.snapshot(move) for move in moves if move.position == after]
            if after and before not in bases:
                return []
            if self.store.probe().exclusive_create:  # what is put twice is durable, too
                self.store.put(last.name, [encode_move(snapshot)])
        except Exception as again:
            if isinstance(error, NotFoundError):  # the store has gone, and refused the move
                raise error from None
            code = error.code if isinstance(error, StoreError) else ErrorCode.IO_FAILED
            unknown = StoreError(
                code,
                f"{error}. Whether {ref!r} has moved to {snapshot} is unknown ({again}): repeat "
                "the call, which does nothing twice",
            )
            unknown.snapshot = snapshot
            raise unknown from error
        return moves

    def branches(self) -> dict[str, SnapshotId]:
        """All branches and where they are, by name."""
        return self._targets(self._heads)

    def delete_branch(self, branch: str) -> None:
        """Forget a branch; its snapshots stay.

        Raises:
            NotFoundError: There is no such branch.
        """
        self._delete(self._heads, "branch", branch)

    def tags(self) -> dict[str, SnapshotId]:
        """All tags and where they point, by name."""
        return self._targets(self._tags)

    def tag(self, tag: str) -> SnapshotId | None:
        """Where a tag points; None if there is no such tag."""
        moves = self._tags.moves(names.check_ref_name(tag))
        return self._tags.snapshot(latest(moves)) if moves else None

    def head_and_tag(self, name: str) -> tuple[Head | None, SnapshotId | None]:
        """Where the branch and the tag of this name are; asked for at the same time."""
        if not self.store.capabilities.remote:
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
            if self._append(self._tags, tag, 0, None, snapshot)[0]:
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
        self._delete(self._tags, "tag", tag)

    def objects(self) -> list[ObjectInfo]:
        """The objects of all branches and tags, whatever they are called."""
        return [*self.store.list(names.HEADS), *self.store.list(names.TAGS)]

    def target(self, info: ObjectInfo) -> SnapshotId:
        """Where the move of a ref leads that this object is.

        Raises:
            IntegrityError: It is damaged, or is called as no move of a ref is.
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

    def _delete(self, log: RefLog, kind: str, ref: str) -> None:
        moves: Sequence[Move] = log.moves(names.check_ref_name(ref))
        key = log.kind + ref
        if not moves:
            if self._doubts.pop(key, ref) is None:  # it was deleted, and nobody could tell
                return
            raise no_ref(kind, ref)
        try:
            log.remove(moves)
        except BaseException as error:
            self._doubts[key] = None
            if not isinstance(error, Exception) or log.moves(ref):
                raise
        else:
            self._doubts.pop(key, None)


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
