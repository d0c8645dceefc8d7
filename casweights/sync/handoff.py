"""Steps pass from the threads that publish to the one that writes versions."""

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
        name: The name of the state.
        error: The reason.
    """

    name: str
    error: BaseException


class Handoff:
    """A queue of one step, and the turns at the mirror that captured steps lie in.

    Callers capture states into the mirror, the writer's thread encodes them from it::

        caller    acquire ──▶ captures ──▶ put          the step waits in the slot
                                 └─ fails ──▶ abandon   no mirror, no waiting step
        writer    (take) ──▶ encodes ──▶ release_mirror ──▶ uploads ──▶ (finish)

    The mirror has one user at a time: a caller from `acquire` to `put` or `abandon`, or the writer
    from taking a captured step to `release_mirror`. While the writer uploads, a caller may capture
    the next state. The slot is empty, or its step waits for the writer::

        EMPTY ── put ──▶ WAITING ── take ──▶ EMPTY, and the writer is busy until it finishes
                         WAITING ── put ──▶ WAITING, if steps may be left out: the new step has
                                            the changes of the old one
                         WAITING ── abandon, conflict ──▶ EMPTY, and the failure is kept

    One condition guards the slot, the turns and the failures. It is held for moments only: no user
    of the mirror and no request to the store runs under it. Failures are kept until a call raises
    them, one for each call. After a `ConflictError` nothing can follow, so every call raises it.

    Args:
        replaces: Whether a new step takes the place of a waiting one. Otherwise `acquire` waits.
        check_open: Raises an error once nothing may be published any more.

    Attributes:
        mirror: The last one that was captured into. Set only by the caller that has acquired it.
    """

    def __init__(self, *, replaces: bool, check_open: Callable[[], None]) -> None:
        self.mirror: Mirror | None = None
        self._replaces = replaces
        self._check_open = check_open
        self._state = threading.Condition()  # guards what follows
        self._mirror_is_used = False
        self._waiting: Step | None = None
        self._writing: str | None = None  # the name of the step that the writer has
        self._failures: list[Failure] = []
        self._conflict: ConflictError | None = None
        self._closing = False

    def acquire(self, layout: Layout) -> None:
        """Wait until a state of this layout may be captured, and take the mirror.

        A state that the mirror has no place for is captured when nothing is under way.

        Raises:
            CasweightsError: The failure of an earlier step.
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
            self._check()
            self._mirror_is_used = True

    def put(self, step: Step) -> None:
        """Hand a step over, and give the mirror back."""
        with self._state:
            self._mirror_is_used = False
            waiting = self._waiting
            if isinstance(step, CapturedStep) and isinstance(waiting, CapturedStep):
                step = step.in_place_of(waiting)
            self._waiting = step
            self._state.notify_all()

    def abandon(self) -> None:
        """Give the mirror up: capturing failed, and half of it may be overwritten."""
        with self._state:
            self._mirror_is_used = False
            self.mirror = None
            if isinstance(self._waiting, CapturedStep):
                name, self._waiting = self._waiting.label.name, None
                self._failures.append(Failure(name, _overwritten(name)))
            self._state.notify_all()

    def serve(self, write: Callable[[Step], None]) -> None:
        """Write one step after the other, until `close`; the body of the writer's thread.

        Args:
            write: Makes a version of a step. For a captured one it calls `release_mirror`.
        """
        while (step := self._take()) is not None:
            failure = _attempt(write, step)
            del step  # its mirror may have to make room for another one
            self._finish(failure)
            del failure

    def _take(self) -> Step | None:
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
        """Let callers capture again: the step that the writer has is encoded, or has failed."""
        with self._state:
            self._mirror_is_used = False
            self._state.notify_all()

    def _finish(self, failure: BaseException | None) -> None:
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
        if self._conflict is not None:
            self._failures.clear()  # the conflict speaks for them all
            raise self._conflict
        if self._failures:
            raise self._failures.pop(0).error

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until no step waits or is written, whatever came of it.

        Returns:
            Whether that was reached within `timeout` seconds.
        """
        with self._state:
            return self._state.wait_for(self._is_idle, timeout)

    def raise_failure(self) -> None:
        """Raise the oldest failure that no call has raised yet, if there is one."""
        with self._state:
            self._raise_failure()

    def losses(self) -> list[str]:
        """A line for each step that is not durable and whose failure no call has raised yet."""
        with self._state:
            pending = [self._writing, self._waiting and self._waiting.label.name]
            failed = [f"{failure.name}: {failure.error}" for failure in self._failures]
        unwritten = [f"{name}: the program ended before it was written" for name in pending if name]
        return failed + unwritten

    def close(self) -> None:
        """Let `serve` return once no step waits."""
        with self._state:
            self._closing = True
            self._state.notify_all()

    def raise_all(self) -> None:
        """Raise the oldest failure, with the others as its notes."""
        with self._state:
            for other in self._failures[1:]:
                self._failures[0].error.add_note(f"also, {other.name}: {other.error}")
            self._raise_failure()


def _attempt(write: Callable[[Step], None], step: Step) -> BaseException | None:
    try:
        write(step)
    except BaseException as error:  # a caller's thread raises it
        return error
    return None


def _overwritten(name: str) -> CasweightsError:
    return InvalidInputError(
        ErrorCode.SOURCE_CHANGED,
        f"{name} was not published: a call that failed has overwritten the copy that was kept of "
        "it. Publish again",
    )
