"""Logs of refs: each move is a small object that is named by its position.

The move at the highest position is the newest one. Where the store creates objects exclusively,
exactly one writer gets each position. Elsewhere a move's name also contains the version and the
one before it, so that two moves at one position do not overwrite each other. There a writer has
moved the ref only once a listing shows its move alone at its position, or earlier than all others
by more than the store's clocks may differ. Until then, readers use the earliest of several moves.
docs/design/016 has the reasoning.

There a move can also be *whole*: its object is the version itself, so that one put adds the version
and moves the branch. The store given to `RefLog` is then a `VersionNames`, which keeps the version
when the move is removed.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from casweights.database.deleting import try_delete
from casweights.database.listing import LISTING_SECONDS, looks, pauses
from casweights.database.moves import (
    GONE,
    MAX_MOVE,
    Move,
    decode_move,
    encode_move,
    first,
    has_mark,
    is_same,
    latest,
    line,
    named,
    off_line,
    parse_move,
    removal_rank,
)
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    NotFoundError,
    StoreError,
)
from casweights.format import names
from casweights.stores.base import ObjectInfo
from casweights.stores.optional import SupportsCopy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.database.moves import Content, Version
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore

_KEPT_MOVES = 100  # per ref; at twice the number the older half is removed, to bound listings
# Moves per branch that maintenance leaves; the versions behind them go into archives. A chunk is
# rebuilt from at most as many frames, most of which the newest versions carry then.
RECENT_MOVES = 64
_LAST_MOVES = 8  # that stay however old they are: writers look at the last three positions
_YIELD_SECONDS = 2.0  # time after which a writer withdraws its move if a rival's move stays
# A writer waits this many times as long for the rivals of its base: they may need the time above
# to give up, and more calls to withdraw.
_SETTLE_FACTOR = 3


class RefLog:
    """The logs of all branches, or of all tags.

    No lock is held anywhere: writers compete by putting moves. The order of a change:

    1. `settled` returns the moves of a ref once no two writers compete for the newest position.
       The caller passes the position and version of the newest one as `after` and `before`.
    2. `append` puts a move at the next position, and lists the ref's moves until it is certain
       whether the move counts. A move that does not count is withdrawn (deleted), and the caller
       begins again at step 1.

    A writer may stop or die between any two calls. Others wait for it for a limited time, and then
    treat its move as one that stays. `moves` and `all` are for readers and never wait. Lists of
    moves contain all that a listing shows, by position; `moves.latest` returns the newest one that
    counts, and `moves.line` those that make up the history of the ref.

    Args:
        store: The store that contains the logs.
        kind: `names.HEADS` or `names.TAGS`.

    Attributes:
        kind: Beginning of the names of all moves, `names.HEADS` or `names.TAGS`.
    """

    def __init__(self, store: ObjectStore, kind: str) -> None:
        self._store = store
        self.kind = kind
        skew = store.capabilities.clock_skew
        self._has_clock = skew is not None
        self._skew = (skew or 0.0) * 1e6  # microseconds
        self._withdrawn: set[str] = set()  # names of moves that listings may still show
        self._may_trim = True  # until the store refuses a deletion

    @property
    def takes_versions(self) -> bool:
        """Whether writers make whole moves.

        With exclusive create, the name of a move cannot have the version's ID. And where copies
        move the bytes, it costs too much to keep versions whose moves are removed.
        """
        return not self._exclusive and self._store.ability(SupportsCopy) is not None

    @property
    def _exclusive(self) -> bool:
        """Whether each position can have only one move."""
        return self._store.probe().exclusive_create

    def all(self, infos: Iterable[ObjectInfo] | None = None) -> dict[str, list[Move]]:
        """Return the moves of each ref, by the name of the ref. Malformed moves are left out.

        Args:
            infos: A listing that contains all moves of this kind; None to list the store.
        """
        listed = self._listed(self.kind) if infos is None else infos
        found: dict[str, list[Move]] = {}
        for move in self._moves(listed):
            found.setdefault(move.ref, []).append(move)
        return dict(sorted(found.items()))

    def moves(self, ref: str, since: int = 0) -> list[Move]:
        """Return the moves of one ref that a listing shows, except those that `append` withdrew.

        Args:
            ref: The branch or tag.
            since: Moves to lower positions are left out. Only what is returned takes time.
        """
        begin = f"{self.kind}{ref}/"
        listed = self._listed(begin, lowest=f"{begin}{since:0{names.POSITION_DIGITS}}")
        return list(self._of(ref, listed))

    def newest(self, ref: str) -> list[Move]:
        """Return those of the `moves` of a ref that have the two highest positions."""
        found: list[Move] = []
        # Names sort as positions do, and most of them need not be parsed.
        for move in self._of(ref, self._listed(f"{self.kind}{ref}/", backwards=True)):
            if len({move.position, *(other.position for other in found)}) > 2:
                break
            found.append(move)
        return found[::-1]

    def _of(self, ref: str, infos: Iterable[ObjectInfo]) -> Iterator[Move]:
        moves = self._moves(infos)
        return (move for move in moves if move.ref == ref and move.name not in self._withdrawn)

    def _listed(
        self, prefix: str, *, lowest: str = "", backwards: bool = False
    ) -> Iterable[ObjectInfo]:
        """List objects by name; without sizes and times if the store's times say nothing.

        Args:
            prefix: What their names begin with.
            lowest: Names that sort before it are left out.
            backwards: Whether the last one comes first.
        """
        order = -1 if backwards else 1
        if self._has_clock:
            infos = list(self._store.list(prefix))[::order]
            return (info for info in infos if info.name >= lowest)
        found = list(self._store.list_names(prefix))[::order]
        return (ObjectInfo(name, 0) for name in found if name >= lowest)

    def _moves(self, infos: Iterable[ObjectInfo]) -> Iterator[Move]:
        """Yield the moves among some objects. Other objects are skipped; `verify` reports them."""
        for info in infos:
            if info.name.startswith(self.kind):
                with suppress(IntegrityError):
                    move = parse_move(info, self.kind)
                    yield move if self._has_clock else replace(move, created=0)

    def target(self, move: Move) -> SnapshotId:
        """Return the version that a move's object names, or that a whole move is.

        The result is `GONE` for a deletion.

        Raises:
            NotFoundError: The object is gone.
            IntegrityError: The object is damaged, or contradicts its name.
        """
        if move.is_whole and move.snapshot is not None:
            return move.snapshot
        return self._read(move).snapshot

    def _read(self, move: Move) -> Content:
        return decode_move(self._store.read(move.name, MAX_MOVE), move)

    def before(self, move: Move) -> SnapshotId | None:
        """Return the version that a deletion's ref named before; None for other moves.

        Raises:
            NotFoundError: The object is gone.
            IntegrityError: The object is damaged, or contradicts its name.
        """
        return None if move.is_whole else self._read(move).before

    def snapshot(self, move: Move) -> SnapshotId | None:
        """Return the version of a move from its name, or else from its object.

        Returns:
            The version, `GONE` for a deletion, or None if the object was removed since its listing.

        Raises:
            IntegrityError: The name has no version, and the object is damaged.
        """
        if move.snapshot is not None:
            return move.snapshot
        try:
            return self.target(move)
        except NotFoundError:
            return None

    def deleted(self, move: Move) -> SnapshotId | None:
        """Return the version that a ref named before this move deleted it.

        Returns:
            The version, or None if the move is no deletion or was removed since its listing.

        Raises:
            IntegrityError: The name does not say so, and the object is damaged.
        """
        if move.snapshot not in (None, GONE):
            return None
        if move.snapshot == GONE and move.before is not None:
            return move.before
        try:
            return self._read(move).before
        except NotFoundError:
            return None

    def settled(self, ref: str) -> list[Move]:
        """Return the moves of a ref once no two writers compete for its newest position.

        Where each position has one move, only the `newest` ones are returned, at once. Elsewhere
        this also waits while the newest move may be withdrawn because its base is gone. Because a
        writer may have died, the wait ends after 6 seconds, or later if listings are slow, and the
        moves are returned as they are.
        """
        if self._exclusive:
            return self.newest(ref)
        begin, slowest, left = time.monotonic(), 0.0, pauses()
        while True:
            start = time.monotonic()
            moves = self.moves(ref)
            if not moves or not self.is_contested(moves, latest(moves)):
                return moves
            slowest = max(slowest, time.monotonic() - start)
            if time.monotonic() - begin > _settling(slowest):
                return moves
            time.sleep(next(left))

    def append(
        self,
        ref: str,
        after: int,
        before: SnapshotId | None,
        snapshot: SnapshotId,
        version: Version | None = None,
    ) -> tuple[bool, list[Move]]:
        """Move a ref to the position after `after`, where it must be at version `before`.

        Args:
            ref: The branch or tag.
            after: Its position; 0 for a new one.
            before: The version at that position, or `GONE`; None for a new one.
            snapshot: The version to move it to; `GONE` to delete it.
            version: The object of that version, if the move is to be whole; only where
                `takes_versions`, and not for tags.

        Returns:
            Whether it moved, and the moves of the ref, where each position has one move only those
            since `after`. It did not move if another writer was first, or if `after` is no longer
            on the ref's line, see `moves.line`. The list of moves is empty if none had to be
            listed.

        Raises:
            StoreError: The store failed, or does not list the new move. It is unknown then whether
                the ref has moved.
        """
        writer = secrets.token_hex(names.WRITER_DIGITS // 2)
        position, suffix = after + 1, names.REF_SUFFIX if version is None else names.STEP_SUFFIX
        name = names.move_name(self.kind, ref, position, snapshot, before, writer, suffix)
        if self._exclusive:
            name = names.move_name(self.kind, ref, position)
        content = [encode_move(snapshot, before)] if version is None else version.parts
        # The random digits make the name this writer's own.
        unique = not self._exclusive and (version is None or version.assume_store)
        companions = () if version is None else version.companions
        created = self._store.put_all([(name, content), *companions], assume_absent=unique)[0]
        if self._exclusive and not created:
            return False, []
        won, moves = self._outcome(ref, name, after, before)
        if not (won or (snapshot == GONE and has_mark(moves, position, before))):
            with suppress(CasweightsError):  # off the line, a move that stays has no effect
                self._store.delete(name)  # a version that is the move stays in the store
                self._withdrawn.add(name)
            return False, [other for other in moves if other.name != name]
        is_long = len(moves) >= 2 * _KEPT_MOVES and len(line(moves)) >= 2 * _KEPT_MOVES
        if is_long and self._may_trim:
            with suppress(CasweightsError):  # a later move tries again
                self._may_trim = self.trim(moves, _KEPT_MOVES)
        return True, moves

    def _outcome(
        self, ref: str, name: str, after: int, before: SnapshotId | None
    ) -> tuple[bool, list[Move]]:
        """Determine whether a move that this writer has just put counts.

        A move counts for good once a listing shows it alone at its position, on a base that is
        alone at its own position and whose own base exists: any rival that is put later sees the
        move in its first listing, and withdraws. Among rivals that see each other, the later ones
        withdraw at once, and the earliest one waits for that. If it is earlier by more than the
        clocks may differ, it counts without a wait. A rival that does not withdraw may have been
        alone at its first listing, and so may count; therefore the writer that waits withdraws in
        the end.

        Returns:
            Whether the move counts, and the listing that decided it.
        """
        start, left = time.monotonic(), pauses()
        moves = self._list_with(ref, name, after)
        lag = time.monotonic() - start
        patience, start = max(_YIELD_SECONDS, 2 * lag), start + lag
        while (mine := named(moves, name)) and self._counts(mine, after, before, moves):
            if self._exclusive:
                return True, moves
            near = [move for move in moves if abs(move.position - after) <= 1]
            base, has_rivals = first(near, after), self._rivals(near, mine)
            is_on_first = base is None or base.snapshot in (None, before)
            if not (has_rivals or (base and self.is_contested(near, base))):
                return is_on_first, moves
            if time.monotonic() - start > (patience if has_rivals else _settling(lag)):
                return is_on_first and not has_rivals, moves
            time.sleep(next(left))
            moves = self._list_with(ref, name, after)
        return False, moves

    def _counts(
        self, mine: Move, after: int, before: SnapshotId | None, moves: Sequence[Move]
    ) -> bool:
        """Whether a move is on the ref's line, on the base that its writer saw."""
        # The line goes through a move that others built on, even if a rival of it is earlier.
        taken = line(moves)
        own, base, earliest = taken.get(after + 1), taken.get(after), first(moves, after + 1)
        if own is None or earliest is None or not is_same(own, mine):
            return False
        if own.created - earliest.created > self._skew:
            return False
        # In a longer branch the first moves may have been removed, so that a writer that looked
        # before the branch existed can create position 1 again.
        if after == 0:
            return max(taken) <= RECENT_MOVES
        found = self.snapshot(base) if base else None
        if base and found is None:  # a mark has taken its place since the listing
            base = line(self.moves(mine.ref, after)).get(after)
            found = self.snapshot(base) if base else None
        return found is not None and found == before

    def is_contested(self, moves: Sequence[Move], newest: Move) -> bool:
        """Whether the writer of a move may be about to withdraw it.

        It may if the move has rivals, or if the move that it builds on is gone. A mark stays.
        """
        if newest.is_mark:
            return False
        return self._rivals(moves, newest) or (
            newest.before is not None
            and not any(
                move.position == newest.position - 1 and move.snapshot in (None, newest.before)
                for move in moves
            )
        )

    def _rivals(self, moves: Iterable[Move], mine: Move) -> bool:
        """Whether other moves have the same position, at times too close to order them."""
        return any(
            move.position == mine.position
            and abs(move.created - mine.created) <= self._skew
            and not is_same(move, mine)
            for move in moves
        )

    def _list_with(self, ref: str, name: str, after: int) -> list[Move]:
        """List the moves of a ref until a listing shows the move that was just put.

        Such a listing also shows all moves that were put before it. A mark at its position or later
        says that it may have been removed. If the move does not appear in 30 seconds, but others at
        its position or later do, then others have removed it.

        Raises:
            StoreError: The move does not appear, and no others do.
        """
        # Where no rival can be at any position, older moves are only listed to remove them.
        is_due = not self._exclusive or (after + 1) % _KEPT_MOVES == 0
        moves: list[Move] = []
        for moves in looks(lambda: self.moves(ref, 0 if is_due else after)):
            if any(m.name == name or (m.is_mark and m.position > after) for m in moves):
                return moves
        if any(move.position > after for move in moves):
            return moves
        raise StoreError(
            ErrorCode.UNREACHABLE,
            f"{self._store.url} does not list {name} {LISTING_SECONDS:g} s after it was written, "
            "so it is unknown whether the ref has moved: look at the ref later",
        )

    def trim(self, moves: Sequence[Move], kept: int, since: int = 0) -> bool:
        """Remove the moves on a ref's line that are below its last `kept` positions.

        Where names say what moves came from, older ones than `since`, a time by the store's clock
        in microseconds, go as well, but for the last few: each may be a version with its bytes.

        Returns:
            Whether the store allowed that.
        """
        newest = latest(moves).position
        last = newest - kept
        if not self._exclusive:
            on_line = line(moves).values()
            young = [move.position for move in on_line if not 0 < move.created < since]
            last = max(last, min([newest - _LAST_MOVES + 1, *young]) - 1)
        old = {move for move in moves if move.position <= last}
        return self.remove(old - set(off_line(moves)))

    def remove(self, moves: Iterable[Move]) -> bool:
        """Delete moves, the newest one last, so that the ref has the same head until the end.

        Returns:
            Whether the store allowed that.
        """
        ordered = sorted(moves, key=removal_rank, reverse=True)
        return not ordered or try_delete(self._store, [move.name for move in ordered])


def _settling(lag: float) -> float:
    """Return the seconds to wait for the rivals of a base, in a store where a listing takes `lag`.

    A rival waits for up to twice its own lag before it withdraws, and needs some calls for that.
    """
    return _SETTLE_FACTOR * max(_YIELD_SECONDS, 4 * lag)
