"""A branch as its replicas see it: the version at its head, and the moments when it moves."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

from casweights.errors import ErrorCode, NotFoundError
from casweights.ids import SnapshotId
from casweights.results import PollStats

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.database.moves import Head
    from casweights.events import Reporter
    from casweights.repository import Ref, Repository

# The pause before the next look, as a share of the time since the last move. About ten looks
# between two moves notice regular moves soon, at little cost.
_PAUSE_SHARE = 0.1


class Resolved(NamedTuple):
    """A version to which a ref resolved.

    Attributes:
        version: The version's ID.
        position: Number of moves of the branch up to this version; None if the version is not
            known to have been a head of the branch.
    """

    version: SnapshotId
    position: int | None


class BranchReader:
    """Reads the head of a branch, and resolves refs to versions.

    Args:
        store: The store.
        branch: The branch.
        reporter: Receives `Reporter.polled`.
    """

    def __init__(self, store: Repository, branch: str, reporter: Reporter) -> None:
        self._store = store
        self._branch = branch
        self._reporter = reporter
        self._seen: Head | None = None

    def look(self) -> Head | None:
        """Read the current head of the branch; None if the branch does not exist."""
        begin = time.monotonic()
        head = self._store.database.refs.head(self._branch)
        seconds = time.monotonic() - begin
        self._seen = head
        self._reporter.polled(PollStats(snapshot=head.snapshot if head else None, seconds=seconds))
        return head

    def resolve(self, ref: Ref | None) -> Resolved:
        """Return the version that a ref names; for None, the current head of the branch.

        Raises:
            NotFoundError: No such branch or version exists. A version that is given by its whole
                ID is not looked up.
        """
        if ref is None:
            head = self.look()
            if head is None:
                raise NotFoundError(
                    ErrorCode.REF_NOT_FOUND, f"the store has no branch {self._branch!r} yet"
                )
            return Resolved(head.snapshot, head.position)
        if isinstance(ref, str) and re.fullmatch("[0-9a-fA-F]{64}", ref):
            version = SnapshotId.from_hex(ref)  # loading it shows whether it exists
        else:
            version = self._store.resolve(ref)
        seen = self._seen
        return Resolved(version, seen.position if seen and seen.snapshot == version else None)

    def follow(
        self,
        callback: Callable[[SnapshotId], object],
        *,
        ended: Callable[[], bool],
        pause: Callable[[float], object],
        interval: float,
        max_interval: float,
    ) -> None:
        """Call a function with the current head of the branch, and again after each move found.

        Args:
            callback: The function; it receives the ID of the version at the head.
            ended: Returns whether to stop; called before each look.
            pause: Sleeps for a number of seconds.
            interval: Minimum number of seconds between two looks.
            max_interval: Maximum number of seconds between two looks.
        """
        seen: SnapshotId | None = None
        since = time.monotonic()
        while not ended():
            head = self.look()
            if head is not None and head.snapshot != seen:
                seen, since = head.snapshot, time.monotonic()
                callback(seen)
            rested = time.monotonic() - since
            pause(max(interval, min(_PAUSE_SHARE * rested, max_interval)))
