"""The queue by which publishing threads hand steps to the thread that writes versions."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from casweights.errors import CasweightsError, ConflictError, ErrorCode, InvalidInputError
from casweights.sync.steps import CapturedStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.content.outlines import Layout
    from casweights.sync.mirror import Mirror
    from casweights.sync.steps import Step


class Failure(NamedTuple):
    """A state that did not become a version.

    Attributes:
        name: The name of the state in messages.
        error: The reason.
    """

    name: str
    error: BaseException


class Handoff:
    """A queue of one step, and the lock on the mirror that holds captured steps.

    Callers capture states into the mirror, and the writer's thread encodes them from it::

        caller    acquire ──▶ captures ──▶ put          the step waits in the slot
                                 └─ fails ──▶ abandon   no mirror, no waiting step
        writer    (take) ──▶ encodes ──▶ release_mirror ──▶ uploads ──▶ (finish)

    The mirror has one user at a time: a caller from `acquire` to `put` or `abandon`, or the writer
    from taking a captured step to `release_mirror`. While the writer uploads, a caller may capture
    the next state. The slot is empty, or holds a step that waits for the writer::

        EMPTY ── put ──▶ WAITING ── take ──▶ EMPTY, and the writer is busy until it finishes
                         WAITING ── put ──▶ WAITING, if steps may be left out: the new step
                                            includes the changes of the old one
                         WAITING ── abandon, conflict ──▶ EMPTY, and the failure is kept

    One condition guards the slot, the use of the mirror, and the failures. It is held only
    briefly: neither work on the mirror nor a request to the store runs under it. Failures are kept
    until a call raises them, one per call. After a `ConflictError` no version can follow, so every
    call raises it.

    Args:
        replaces: Whether a new step replaces a waiting one. Otherwise `acquire` waits.
        check_open: Raises an error once the publisher is closed.

    Attributes:
        mirror: The mirror of the last capture. Set only by the caller that has acquired it.
    """

    def __init__(self, *, replaces: bool, check_open: Callable[[], None]) -> None:
        self.mirror: Mirror | None = None
        self._replaces = replaces
        self._check_open = check_open
        self._state = threading.Condition()  # guards all attributes below
        self._mirror_is_used = False
        self._waiting: Step | None = None
        self._writing: str | None = None  # name of the step that the writer works on
        self._failures: list[Failure] = []
        self._conflict: ConflictError | None = None
        self._closing = False

    def acquire(self, layout: Layout) -> None:
        """Wait until a state of this layout may be captured, and take the mirror.

        A state of another layout than the mirror's needs a new mirror. It is captured only when no
        step waits or is being written.

        Raises:
            CasweightsError: The failure of an earlier step. The mirror is not taken.
        """

        def is_free() -> bool:
            if self._mirror_is_used:
                return False
            if self.mirror is None or self.mirror.layout != layout:
                return self._is_idle()
            return self._waiting is None or self._replaces

        with self._state:
            self._check()
            self._state.wait_for(is_free)
            self._check()  # a step may have failed while this thread waited
            self._mirror_is_used = True

    def put(self, step: Step) -> None:
        """Put a step into the slot, and release the mirror."""
        with self._state:
            self._mirror_is_used = False
            waiting = self._waiting
            if isinstance(step, CapturedStep) and isinstance(waiting, CapturedStep):
                step = step.in_place_of(waiting)
            self._waiting = step
            self._state.notify_all()

    def abandon(self) -> None:
        """Drop the mirror after a failed capture, which may have overwritten part of it.

        A captured step that waits is lost with the mirror, and recorded as a failure.
        """
        with self._state:
            self._mirror_is_used = False
            self.mirror = None
            if isinstance(self._waiting, CapturedStep):
                name, self._waiting = self._waiting.label.name, None
                self._failures.append(Failure(name, _overwritten(name)))
            self._state.notify_all()

    def serve(self, write: Callable[[Step], None]) -> None:
        """Write one step after another until `close`; the body of the writer's thread.

        Args:
            write: Turns a step into a version. For a captured step it calls `release_mirror`.
        """
        while (step := self._take()) is not None:
            failure = _attempt(write, step)
            # Keep no references while waiting: a new mirror may need the memory of the old one.
            del step
            self._finish(failure)
            del failure

    def _take(self) -> Step | None:
        """Wait for a step, and for the mirror if it is captured; None after `close`."""
        with self._state:
            self._state.wait_for(
                lambda: not self._mirror_is_used and (self._waiting or self._closing)
            )
            step, self._waiting = self._waiting, None
            if step is not None:
                self._writing = step.label.name
                self._mirror_is_used = isinstance(step, CapturedStep)
            return step

    def release_mirror(self) -> None:
        """Let callers capture again: the writer's step is encoded, or has failed."""
        with self._state:
            self._mirror_is_used = False
            self._state.notify_all()

    def _finish(self, failure: BaseException | None) -> None:
        """Record the result of the writer's step; a conflict drops the waiting step, too."""
        with self._state:
            if failure is not None:
                self._failures.append(Failure(self._writing or "", failure))
            if isinstance(failure, ConflictError):
                if self._waiting is not None:
                    self._failures.append(Failure(self._waiting.label.name, failure))
                self._conflict, self._waiting = failure, None
            self._writing = None
            self._state.notify_all()

    def _is_idle(self) -> bool:
        return self._waiting is None and self._writing is None

    def _check(self) -> None:
        self._check_open()
        self._raise_failure()

    def _raise_failure(self) -> None:
        """Raise the conflict or else the oldest failure, if any; the caller holds the condition."""
        if self._conflict is not None:
            self._failures.clear()  # the conflict explains all of them
            raise self._conflict
        if self._failures:
            raise self._failures.pop(0).error

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until every step is written or has failed.

        Returns:
            False if that takes longer than `timeout` seconds.
        """
        with self._state:
            return self._state.wait_for(self._is_idle, timeout)

    def pause(self, timeout: float) -> None:
        """Wait until no state is being captured, encoded or written, or until `close`.

        Args:
            timeout: Maximum number of seconds to wait.
        """
        with self._state:
            self._state.wait_for(
                lambda: self._closing or (self._is_idle() and not self._mirror_is_used), timeout
            )

    def raise_failure(self) -> None:
        """Raise the oldest failure that no call has raised yet, if any."""
        with self._state:
            self._raise_failure()

    def losses(self) -> list[str]:
        """Return a line for each step that is not durable, unless a call raised its failure."""
        with self._state:
            pending = [self._writing, self._waiting and self._waiting.label.name]
            failed = [f"{failure.name}: {failure.error}" for failure in self._failures]
        unwritten = [f"{name}: the program ended before it was written" for name in pending if name]
        return failed + unwritten

    def close(self) -> None:
        """Make `serve` return once no step waits."""
        with self._state:
            self._closing = True
            self._state.notify_all()

    def raise_all(self) -> None:
        """Raise the oldest failure, if any, with the others as its notes."""
        with self._state:
            for other in self._failures[1:]:
                self._failures[0].error.add_note(f"also, {other.name}: {other.error}")
            self._raise_failure()


def _attempt(write: Callable[[Step], None], step: Step) -> BaseException | None:
    """Write a step; return the error that it raised, or None."""
    try:
        write(step)
    except BaseException as error:  # a caller's thread raises it
        return error
    return None


def _overwritten(name: str) -> CasweightsError:
    """Return the error for a step that was lost with its mirror."""
    return InvalidInputError(
        ErrorCode.SOURCE_CHANGED,
        f"{name} was not published: a later call to publish failed, and overwrote the copy of it "
        "in memory. Publish again",
    )
