"""Deletes branches and tags by moves, and finds what was deleted.

A deletion is a move to `GONE`, and the rule that decides every move decides whether it counts. So
it needs no right to delete objects, and of a deletion and another move at the same moment only one
succeeds. The next move of the ref brings it back, or creates it again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.database.moves import GONE, MAX_MOVE, decode_move, latest, line
from casweights.errors import (
    ConflictError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.format import names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from casweights.database.moves import Move
    from casweights.database.ref_writer import RefWriter
    from casweights.database.reflog import RefLog
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectInfo, ObjectStore


class Deletion(NamedTuple):
    """The last deletion of a ref.

    Attributes:
        position: Number of the move that deleted it.
        snapshot: The version that the ref named before.
        is_last: Whether no move followed, so that the name is free.
    """

    position: int
    snapshot: SnapshotId
    is_last: bool


class Deletions:
    """The deletions of the branches of a store, or of its tags.

    Args:
        store: The store that contains the log.
        log: The log.
        writer: Moves the refs of the log.
        kind: ``"branch"`` or ``"tag"``, for messages.
    """

    def __init__(self, store: ObjectStore, log: RefLog, writer: RefWriter, kind: str) -> None:
        self._store = store
        self._log = log
        self._writer = writer
        self._kind = kind

    def delete(self, ref: str) -> None:
        """Delete a ref. Its versions stay in the store.

        Raises:
            NotFoundError: There is no such ref.
            ConflictError: Another writer moved it during the call.
        """
        moves = self._log.settled(names.check_ref_name(ref))
        snapshot = self._log.snapshot(latest(moves)) if moves else GONE
        if snapshot in (None, GONE):
            if not self._writer.is_doubted(ref, GONE):
                raise no_ref(self._kind, ref)
            self._writer.settle(ref)  # deleted by an earlier call that failed after the move
        elif not self._writer.append(ref, latest(moves).position, snapshot, GONE)[0]:
            raise ConflictError(
                ErrorCode.REF_MOVED,
                f"{self._kind} {ref!r} was moved by another writer at the same time, and was not "
                "deleted: look at it, and repeat the command to delete it nevertheless",
            )

    def undelete(self, ref: str, deletion: Deletion, *, ready: Callable[[], object]) -> None:
        """Let a ref name the version that it named before it was deleted.

        Args:
            ref: The ref.
            deletion: Its last deletion.
            ready: Called right before the move, as in `Refs.advance`.

        Raises:
            ConflictError: The name is in use again, or another writer took it during the call.
        """
        is_free = deletion.is_last
        if not is_free and self._writer.is_doubted(ref, deletion.snapshot):
            self._writer.settle(ref)  # brought back by an earlier call that failed after the move
        elif not (is_free and self._bring_back(ref, deletion, ready)):
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"the name of {self._kind} {ref!r} is in use again: choose another name for the "
                f"deleted {self._kind} (--as NAME), at {deletion.snapshot}",
            )

    def _bring_back(self, ref: str, deletion: Deletion, ready: Callable[[], object]) -> bool:
        ready()
        return self._writer.append(ref, deletion.position, GONE, deletion.snapshot)[0]

    def add_name(self, known: names.RefNames, name: str) -> None:
        """Add a new name to the existing ones, if it can be told from all of them."""
        try:
            known.add(name)
        except InvalidInputError as error:
            other = known.similar(name)
            if other in self.all():
                error.add_note(
                    f"{other!r} was deleted, and keeps its name: `casweights undelete {other}` "
                    "brings it back, and a new branch or tag can be named exactly as it was"
                )
            raise

    def last(self, ref: str) -> Deletion | None:
        """Return the last deletion that the log of a ref contains, or None."""
        moves = self._log.settled(names.check_ref_name(ref))
        on_line = line(moves or ())
        if on_line and self._log.snapshot(latest(moves)) != GONE:
            on_line = line(self._log.moves(ref))
        for position, move in on_line.items():
            snapshot = self._log.deleted(move)
            if snapshot is not None:
                return Deletion(position, snapshot, is_last=position == max(on_line))
        return None

    def all(self, infos: Iterable[ObjectInfo] | None = None) -> dict[str, SnapshotId]:
        """Return the refs that are deleted, with the version that each named before."""
        found = {
            ref: self._log.deleted(latest(moves)) for ref, moves in self._log.all(infos).items()
        }
        return {ref: snapshot for ref, snapshot in found.items() if snapshot is not None}

    def ends(
        self, infos: Iterable[ObjectInfo], counts: Callable[[ObjectInfo], bool] | None = None
    ) -> dict[str, int]:
        """Return up to which position a deletion has ended the log of each ref that has one.

        A deletion counts if it is marked as final, or is on the line. Nothing needs what a ref
        named up to there.

        Args:
            infos: A listing that contains all moves of these refs; damaged ones are passed over.
            counts: Whether the object of a deletion counts; None for all.

        Raises:
            NotFoundError: A move was removed since its listing.
        """
        known = {info.name: info for info in infos}
        found: dict[str, int] = {}
        for ref, moves in self._log.all(known.values()).items():
            on_line = {move.name for move in line(moves).values()}
            for move in moves:
                is_final = move.is_mark or move.name in on_line
                if is_final and (counts is None or counts(known[move.name])):
                    with suppress(IntegrityError):
                        if self._log.target(move) == GONE:
                            found[ref] = max(found.get(ref, 0), move.position)
        return found

    def mark(self, moves: Sequence[Move]) -> bool:
        """Let a mark take the place of all moves of a ref that is deleted.

        Nothing happens if the ref is not deleted, or if its deletion may be withdrawn. Moves are
        removed once a listing shows the mark.

        Args:
            moves: The moves of the ref.

        Returns:
            Whether the store allowed to remove the moves.
        """
        mark = latest(moves)
        if not mark.is_mark:
            name = self._put_mark(moves)
            moves = self._log.moves(mark.ref) if name else ()
            mark = next((move for move in moves if move.name == name), mark)
        if not mark.is_mark:
            return True
        return self._log.remove(
            move for move in moves if move.position <= mark.position and move.name != mark.name
        )

    def _put_mark(self, moves: Sequence[Move]) -> str | None:
        """Add a copy of the move that deleted a ref, whose name says all; return the name."""
        newest = latest(moves)
        if newest.snapshot not in (None, GONE) or self._log.is_contested(moves, newest):
            return None
        try:
            content = self._store.read(newest.name, MAX_MOVE)
            before = decode_move(content, newest).before
        except IntegrityError:
            return None  # for `verify` to report
        except NotFoundError as error:
            if error.code is not ErrorCode.OBJECT_NOT_FOUND:
                raise
            return None  # another client was faster
        if before is None:
            return None
        ref, position, suffix = newest.ref, newest.position, names.OFF_SUFFIX
        name = names.move_name(self._log.kind, ref, position, GONE, before, suffix=suffix)
        self._store.put(name, [content])
        return name


def no_ref(kind: str, name: str) -> NotFoundError:
    """Return the error for a branch or tag that does not exist."""
    return NotFoundError(ErrorCode.REF_NOT_FOUND, f"the store has no {kind} {name!r}")
