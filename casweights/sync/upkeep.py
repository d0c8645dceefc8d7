"""Maintenance in the background of a publisher."""

from __future__ import annotations

import threading
import time
from contextlib import closing, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import MiB
from casweights.errors import CasweightsError, ErrorCode, InvalidInputError, StoreError
from casweights.operations.maintain import Maintenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.database import Database

DEFAULT_EVERY = 32  # versions from one round to the next: a listing for each of them costs nothing
_BUDGET = 64 * MiB  # of objects to read in a round, in addition to a multiple of what was published
_READS = 10  # of a byte at most: 5 copies, from its snapshot and into larger packs, and 5 checks
_SHARE = 20  # a slice waits for a pause of the steps at most this many times as long as the last
_END_SECONDS = 2.0  # `close` waits for a slice in progress, which may hang in a request


class Trouble(NamedTuple):
    """Why a round broke off.

    Attributes:
        code: The code of the error.
        message: What happened and what follows.
    """

    code: str
    message: str


class Upkeep:
    """Maintains a store on a thread of its own, in the pauses between steps.

    A round begins when a version has a number that `every` divides, so rounds also come where
    trainers are restarted often. It works in slices of some milliseconds. Before each slice it
    waits until no step is captured, encoded or written. A trainer that leaves no pause is slowed by
    a twentieth at most. Errors end a round; each one in a row doubles the number of rounds that
    are left out before the next::

        IDLE ── stored ──▶ RUNNING ── done, failed ──▶ IDLE
                               └── close ──▶ ENDED, after the slice in progress

    `stored` and `troubles` have one caller at a time. After `close`, no slice begins.

    Args:
        db: The store.
        every: Number of versions from one round to the next; 0 for no rounds.
        pause: Waits until no step is in progress, at most the given number of seconds.
    """

    def __init__(self, db: Database, every: int, pause: Callable[[float], object]) -> None:
        self._db = db
        self._every = every
        self._pause = pause
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._troubles: SimpleQueue[Trouble] = SimpleQueue()
        self._full: set[str] = set()  # packs that need not be read again
        self._published = 0  # bytes, since the last round began
        self._failures = 0  # in a row
        self._left_out = 0  # rounds that are still to be left out

    def stored(self, number: int, nbytes: int) -> None:
        """Count a version that was published, and begin a round if one is due.

        Args:
            number: The version's number.
            nbytes: Bytes that were stored for it.
        """
        self._published += nbytes
        if not self._every or number % self._every or self._is_running() or self._ending.is_set():
            return
        if self._left_out:
            self._left_out -= 1
            return
        budget, self._published = _BUDGET + _READS * self._published, 0
        self._thread = threading.Thread(
            target=self._round, args=[budget], name="casweights-maintain", daemon=True
        )
        with suppress(RuntimeError):  # the program ends: no thread can be started any more
            self._thread.start()

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _round(self, budget: int) -> None:
        """Maintain the store, and read up to `budget` bytes; the body of the thread."""
        try:
            with closing(self._db.apart()) as db:
                merged, full = self._db.learn_merged, self._full
                work = Maintenance(db, merged=merged, budget=budget, full=full)
                self._run(work)
        except Exception as error:  # a publisher never fails because of maintenance
            self._failed(error)
            return
        if work.stats.may_delete:
            self._failures = 0
        else:
            self._failed(StoreError(ErrorCode.NO_PERMISSION, "you may not delete objects of it"))

    def _run(self, work: Maintenance) -> None:
        with closing(work.slices()) as slices:
            took = 1.0  # second: so long may the first slice be assumed to take
            while not self._ending.is_set():
                self._pause(_SHARE * took)
                begin = time.monotonic()
                if self._ending.is_set() or next(slices, self) is self:
                    return
                took = time.monotonic() - begin

    def _failed(self, error: Exception) -> None:
        self._left_out, self._failures = 2**self._failures - 1, self._failures + 1
        again = self._every * (1 + self._left_out)
        code = error.code if isinstance(error, CasweightsError) else ErrorCode.IO_FAILED
        self._troubles.put(
            Trouble(
                code,
                f"{self._db.store.url} could not be maintained, which is tried again after about "
                f"{again} versions: {error}",
            )
        )

    def troubles(self) -> Iterator[Trouble]:
        """Yield the errors of rounds that were not yielded yet."""
        with suppress(Empty):
            while True:
                yield self._troubles.get_nowait()

    def stop(self) -> None:
        """Let no further slice begin."""
        self._ending.set()

    def close(self) -> None:
        """Let no further slice begin, and wait for the one in progress.

        A slice that hangs in a request is left behind. Whatever it does is complete or had no
        effect, and its thread ends with the request, or with the program.
        """
        self.stop()
        if self._thread is not None and self._is_running():
            self._thread.join(_END_SECONDS)


def interval(maintain: bool | int) -> int:
    """Return the number of versions from one round to the next, for an argument of users.

    Raises:
        InvalidInputError: The number is negative.
    """
    if maintain is True:
        return DEFAULT_EVERY
    if maintain < 0:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"maintain must be True, False or at least 0, got {maintain}"
        )
    return int(maintain)
