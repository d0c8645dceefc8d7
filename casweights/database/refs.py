"""Branches and tags. Both are logs of moves; a tag's log contains one move."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.database import reflog
from casweights.database.moves import GONE, Displaced, Head, latest, line, off_line, parse_move
from casweights.database.own_moves import OwnMoves
from casweights.database.ref_deletions import Deletions
from casweights.database.ref_writer import RefWriter
from casweights.database.reflog import RefLog
from casweights.errors import (
    ConflictError,
    ErrorCode,
    IntegrityError,
    StoreError,
)
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.system.threads import Threads, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.database.moves import Move, Version
    from casweights.database.ref_deletions import Deletion
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectInfo, ObjectStore

    ListNames = Callable[[], names.RefNames]
    Ready = Callable[[], object]

_READERS = 16  # threads that wait for the network


class Refs:
    """The branches and tags of a store.

    The order of calls to move a branch:

    1. ``head(branch, for_update=True)`` returns the head, and reports a displaced earlier move.
    2. `advance` moves the branch from that head. It raises `ConflictError` if another writer has
       moved the branch since; then begin again at step 1.

    Where the store does not create objects exclusively, a move that `advance` returned may be
    displaced later. The next call of step 1 or 2 for the branch then raises `ConflictError`, once.

    A call that raised `StoreError` may have moved the branch. Before a caller repeats it, it looks
    at the head: `is_doubted` says whether the failed call moved the branch there.

    A branch that was deleted is no branch, and `head` returns None. The object remembers from step
    1 where its log ends, so that step 2 continues there.

    Attributes:
        store: The store that contains the refs.
        branch_deletions: The deletions of branches.
        tag_deletions: The deletions of tags.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._heads = RefLog(store, names.HEADS)
        self._tags = RefLog(store, names.TAGS)
        self._head_writer = RefWriter(store, self._heads)
        self._tag_writer = RefWriter(store, self._tags)
        self.branch_deletions = Deletions(store, self._heads, self._head_writer, "branch")
        self.tag_deletions = Deletions(store, self._tags, self._tag_writer, "tag")
        self._own_moves = OwnMoves()
        self._ends: dict[str, int] = {}  # by deleted branch: the position of its last move

    def head(
        self, branch: str, *, for_update: bool = False, list_names: ListNames | None = None
    ) -> Head | None:
        """Return the head of a branch, or None if it does not exist.

        Args:
            branch: The branch.
            for_update: Whether the caller will move the branch. Then this waits until no two
                writers compete for it, and checks that the last move by this object still counts.
            list_names: With `for_update`, a function that returns the names of all branches, to
                which the name of a new branch is added. For callers that list the names once for
                several branches.

        Raises:
            ConflictError: With `for_update`, the last move by this object was displaced. This is
                raised once.
            InvalidInputError: With `for_update`, the branch does not exist, and its name cannot
                be used or is too similar to another one.
        """
        log, name = self._heads, names.check_ref_name(branch)
        moves = log.settled(name) if for_update else log.newest(name)
        if for_update and (snapshot := self._own_moves.pop_displaced(branch, moves)) is not None:
            raise _conflict(snapshot, f"{_displaced(branch, snapshot)}. {_WAYS_BACK}")
        self._ends.pop(name, None)
        if not moves:
            if for_update:
                self.branch_deletions.add_name((list_names or self.branch_names)(), branch)
            return None
        last = latest(moves)
        snapshot = log.snapshot(last)
        if for_update and snapshot == GONE:
            self._ends[name] = last.position
        return None if snapshot in (None, GONE) else Head(branch, last.position, snapshot)

    @property
    def takes_versions(self) -> bool:
        """Whether `advance` can add a version to the store and move the branch by one object."""
        return self._heads.takes_versions

    def advance(
        self,
        branch: str,
        expected: Head | None,
        snapshot: SnapshotId,
        version: Version | None = None,
        *,
        ready: Ready,
    ) -> Head:
        """Move a branch if its head is still the expected one.

        Args:
            branch: The branch.
            expected: The head that the caller saw; None for a branch that did not exist.
            snapshot: The version to move it to.
            version: The object of that version, which then need not be in the store; only where
                `takes_versions`.
            ready: Called right before the move, with no call of the store in between. It raises an
                error if something that the version relies on is gone.

        Returns:
            The new head.

        Raises:
            ConflictError: Another writer has moved the branch since. The error's `snapshot` is
                the version of the caller.
            InvalidInputError: No branch can have this name.
            IntegrityError: One of its moves is damaged.
            StoreError: The store could not be written. The error's `snapshot` is set if it is
                unknown whether the branch has moved.
        """
        names.check_ref_name(branch)
        position = expected.position if expected else self._ends.pop(branch, 0)
        if position + 1 >= 10**names.POSITION_DIGITS:  # only a forged branch comes this far
            where = names.move_name(names.HEADS, branch, position)
            raise corrupt(where, "its position is the last one that a name can have")
        before = expected.snapshot if expected else GONE if position else None
        ready()
        moved, moves = self._head_writer.append(branch, position, before, snapshot, version)
        if not moved:
            message = (
                f"branch {branch!r} was moved or deleted by another writer at the same time. Your "
                f"version is safe in the store as {snapshot}: repeat the command to put it on top "
                "of theirs (nothing is uploaded twice)"
            )
            displaced = self._own_moves.pop_displaced(branch, moves)
            if displaced is not None:
                message += f". In addition, {_displaced(branch, displaced)}. {_WAYS_BACK}"
            raise _conflict(snapshot, message)
        head = Head(branch, position + 1, snapshot)
        self._own_moves.add(head, moves)
        return head

    def displaced(self) -> dict[str, list[Displaced]]:
        """Return the versions that are off the lines of branches, by branch.

        Of each, the writer died before it could withdraw its move, is about to withdraw it, or had
        its move acknowledged before another writer displaced it; docs/format.md has the rules.
        """
        found: dict[str, list[Displaced]] = {}
        for branch, moves in self._heads.all().items():
            for move in off_line(moves):
                snapshot = self._heads.snapshot(move)
                if snapshot is not None:
                    found.setdefault(branch, []).append(Displaced(snapshot, move.before))
        return found

    def drop_displaced(self, snapshot: SnapshotId, branch: str | None = None) -> bool:
        """Forget that a version was displaced. The version stays in the store.

        Args:
            snapshot: The version.
            branch: The branch that it was displaced from; None for all branches.

        Returns:
            Whether the version was displaced.
        """
        log = self._heads
        listed = log.all() if branch is None else {branch: log.moves(names.check_ref_name(branch))}
        dropped = [
            move
            for moves in listed.values()
            for move in off_line(moves)
            if log.snapshot(move) == snapshot
        ]
        if not log.remove(dropped):
            raise StoreError(
                ErrorCode.NO_PERMISSION,
                f"{self.store.url} does not let you delete the move to {snapshot}: make a branch "
                "at the version, or ask somebody who may delete",
            )
        return bool(dropped)

    def trim(self, since: int = 0) -> Iterator[bool]:
        """Shorten the logs of refs: the last `reflog.RECENT_MOVES` moves of a branch stay.

        Of those, older ones than `since`, a time by the store's clock in microseconds, may go as
        well, see `RefLog.trim`. Of a deleted branch or tag, a mark stays. Yields after each log
        whether the store allowed to remove moves.
        """
        for moves in self._heads.all().values():
            is_trimmed = self._heads.trim(moves, reflog.RECENT_MOVES, since)
            yield self.branch_deletions.mark(moves) and is_trimmed
        for moves in self._tags.all().values():
            if latest(moves).position > 1:  # a tag at its first move was never deleted
                yield self.tag_deletions.mark(moves)

    def logged(self) -> set[SnapshotId]:
        """Return the versions that the logs of branches name. Damaged moves are left out."""
        moves = [move for moves in self._heads.all().values() for move in moves]
        with Workers(_READERS) as workers:
            found = set(workers.map(self._logged, moves))
        return {snapshot for snapshot in found if snapshot not in (None, GONE)}

    def _logged(self, move: Move) -> SnapshotId | None:
        with suppress(IntegrityError):
            return self._heads.snapshot(move)
        return None

    def take_in(self, snapshot: SnapshotId) -> None:
        """Forget that a version was displaced, because a branch or tag names it now.

        Errors are ignored: the version is listed as displaced until it is dropped.
        """
        with suppress(StoreError):
            self.drop_displaced(snapshot)

    def branch_names(self) -> names.RefNames:
        """Return the names of all branches, deleted ones included: their logs are there."""
        return names.RefNames(self._heads.all())

    def tag_names(self) -> names.RefNames:
        """Return the names of all tags, deleted ones included."""
        return names.RefNames(self._tags.all())

    def landed(self, branch: str, snapshot: SnapshotId) -> Head | None:
        """Return the head of a branch if it is this version, otherwise None."""
        head = self.head(branch, for_update=True)
        return head if head is not None and head.snapshot == snapshot else None

    def doubt(self, head: Head) -> None:
        """Remember that the caller gets an error although the branch has moved to this head."""
        self._head_writer.doubt(head.branch, head.snapshot)

    def is_doubted(self, head: Head) -> bool:
        """Whether the move to this head by this object ended in an error."""
        return self._head_writer.is_doubted(head.branch, head.snapshot)

    def is_doubted_tag(self, tag: str) -> bool:
        """Whether the last change of a tag by this object ended in an error."""
        return self._tag_writer.is_doubted(tag)

    def last_deletions(self, name: str) -> dict[str, Deletion]:
        """Return the last deletions of a branch and a tag, by ``heads/`` and ``tags/``.

        Args:
            name: Their name; ``heads/NAME`` is a branch only, ``tags/NAME`` a tag only.
        """
        kinds = {"heads/": self.branch_deletions, "tags/": self.tag_deletions}
        chosen = [kind for kind in kinds if name.startswith(kind)] or [*kinds]
        last = {kind: kinds[kind].last(name.removeprefix(kind)) for kind in chosen}
        return {kind: deletion for kind, deletion in last.items() if deletion is not None}

    def branches(self) -> dict[str, SnapshotId]:
        """Return the version of each branch, by name."""
        return self._targets(self._heads)

    def tags(self) -> dict[str, SnapshotId]:
        """Return the version of each tag, by name."""
        return self._targets(self._tags)

    def tag(self, tag: str) -> SnapshotId | None:
        """Return the version of a tag, or None if the tag does not exist."""
        moves = self._tags.newest(names.check_ref_name(tag))
        snapshot = self._tags.snapshot(latest(moves)) if moves else None
        return None if snapshot == GONE else snapshot

    def head_and_tag(self, name: str) -> tuple[Head | None, SnapshotId | None]:
        """Return the head of the branch and the version of the tag of this name.

        Over a network, both are requested at the same time.
        """
        if self.store.capabilities.cheap_reads:
            return self.head(name), self.tag(name)
        with Threads(1, "casweights-refs") as threads:
            tag = threads.submit(self.tag, name)
            return self.head(name), tag.result()

    def set_branch(self, branch: str, snapshot: SnapshotId, *, force: bool, ready: Ready) -> None:
        """Create a branch at a version, or with `force` move one there; `ready` as in `advance`.

        Raises:
            ConflictError: The branch exists, or another writer moved it during the call.
        """
        head = self.head(branch, for_update=True)
        if head is not None and head.snapshot == snapshot and self.is_doubted(head):
            return  # made by an earlier call that failed after it had written the move
        if head is not None and not force:
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"branch {branch!r} exists already, at {head.snapshot}: move it with force, or "
                "choose another name",
            )
        self.advance(branch, head, snapshot, ready=ready)

    def create_tag(
        self,
        tag: str,
        snapshot: SnapshotId,
        *,
        list_names: ListNames | None = None,
        ready: Ready,
    ) -> None:
        """Create a tag. Nothing happens if a tag of this name points to the same version.

        Args:
            tag: The tag.
            snapshot: The version to name.
            list_names: A function that returns the names of all tags, to which this one is added.
                For callers that list the names once for several tags.
            ready: Called right before the move, as in `advance`.

        Raises:
            ConflictError: A tag of this name points to another version.
            InvalidInputError: The name cannot be used or is too similar to that of another tag.
        """
        position, existing = self._settled_tag(tag)
        if existing in (None, GONE):
            if existing is None:
                self.tag_deletions.add_name((list_names or self.tag_names)(), tag)
            ready()
            if self._tag_writer.append(tag, position, existing, snapshot)[0]:
                return
            # None if a listing does not show the other tag yet.
            _, existing = self._settled_tag(tag)
        if existing != snapshot:
            raise tag_taken(tag, None if existing == GONE else existing)

    def _settled_tag(self, tag: str) -> tuple[int, SnapshotId | None]:
        """Return the position and version of a tag once no two writers compete for it.

        The version is `GONE` for a deleted tag, and None without a tag; the position is then 0.
        """
        moves = self._tags.settled(names.check_ref_name(tag))
        snapshot = self._tags.snapshot(latest(moves)) if moves else None
        return (0, None) if snapshot is None else (latest(moves).position, snapshot)

    def objects(self) -> list[ObjectInfo]:
        """Return all objects in the folders of branches and tags, including misnamed ones."""
        return [*self.store.list(names.HEADS), *self.store.list(names.TAGS)]

    def target(self, info: ObjectInfo) -> SnapshotId | None:
        """Return the version that the object of a move points to; None for a deletion.

        Raises:
            IntegrityError: The object is damaged, or its name is not that of a move.
        """
        kind = names.HEADS if info.name.startswith(names.HEADS) else names.TAGS
        log = self._heads if kind == names.HEADS else self._tags
        target = log.target(parse_move(info, kind))
        return None if target == GONE else target

    def ends_of_logs(
        self, infos: Sequence[ObjectInfo], counts: Callable[[ObjectInfo], bool] | None = None
    ) -> dict[str, int]:
        """Do what `Deletions.ends` does for branches and tags, by the folders of their moves."""
        ends = self.branch_deletions.ends(infos, counts), self.tag_deletions.ends(infos, counts)
        found = {names.HEADS + branch: position for branch, position in ends[0].items()}
        return found | {names.TAGS + tag: position for tag, position in ends[1].items()}

    def deleted_from(self, info: ObjectInfo) -> SnapshotId | None:
        """Return the version that a deletion's ref named before; None for other moves."""
        kind = names.HEADS if info.name.startswith(names.HEADS) else names.TAGS
        log = self._heads if kind == names.HEADS else self._tags
        return log.before(parse_move(info, kind))

    def tips(self) -> list[SnapshotId]:
        """Return the versions of all branches and tags, each once, from a single listing."""
        listed = list(self.store.list(names.REFS))
        found = [*self._targets(self._heads, listed).values()]
        return list(dict.fromkeys([*found, *self._targets(self._tags, listed).values()]))

    def likely_bases(self) -> list[SnapshotId]:
        """Return the versions of all tags, and the first ones of branches whose moves are there."""
        listed = list(self.store.list(names.REFS))
        first = [line(moves).get(1) for moves in self._heads.all(listed).values()]
        found = [self._heads.snapshot(move) for move in first if move is not None]
        found += self._targets(self._tags, listed).values()
        return [version for version in dict.fromkeys(found) if version not in (None, GONE)]

    def _targets(
        self, log: RefLog, infos: Sequence[ObjectInfo] | None = None
    ) -> dict[str, SnapshotId]:
        """Return the version of each ref of a log, by name."""
        found = {ref: log.snapshot(latest(moves)) for ref, moves in log.all(infos).items()}
        return {ref: found_at for ref, found_at in found.items() if found_at not in (None, GONE)}


def tag_taken(tag: str, by: SnapshotId | None) -> ConflictError:
    """Return the error for a tag that points to another version; None if that is unknown."""
    return ConflictError(
        ErrorCode.ALREADY_EXISTS,
        f"tag {tag!r} already points to {by or 'another version'}, and tags do not move: delete it "
        "first or choose another name",
    )


_WAYS_BACK = (
    "Repeat the command to continue from the branch's present head; `casweights branch NAME ID` "
    "keeps the displaced version under a name"
)


def _displaced(branch: str, snapshot: SnapshotId) -> str:
    """Return the part of a message that says that a version was displaced."""
    return (
        f"your version {snapshot} was displaced from branch {branch!r}: another writer moved the "
        "branch at the same moment, and that move counts. Your version is safe in the store"
    )


def _conflict(snapshot: SnapshotId, message: str) -> ConflictError:
    """Return the error for a branch that another writer moved, with the caller's version."""
    error = ConflictError(ErrorCode.REF_MOVED, message)
    error.snapshot = snapshot
    return error
