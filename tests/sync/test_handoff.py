"""The handoff alone: who may use the mirror, which step waits, and which failures are kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from casweights.errors import ConflictError, ErrorCode, InvalidInputError
from casweights.sync.handoff import Handoff
from casweights.sync.steps import CapturedStep, EncodedStep, Label
from tests.sync.states import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.sync.steps import Step

LAYOUT: Any = {"w": ("F32", (2,), "cpu")}
OTHER: Any = {"w": ("F32", (3,), "cpu")}


def captured(number: int) -> CapturedStep:
    mirror: Any = SimpleNamespace(merge=lambda older, newer: (older, newer))
    scan: Any = number
    return CapturedStep(Label(number=number, message="", metadata={}), mirror, scan, 1.0)


def encoded(number: int) -> EncodedStep:
    version: Any = None
    return EncodedStep(Label(number=number, message="", metadata={}), version)


class Line:
    """A handoff whose writer records the steps that it receives."""

    def __init__(self, *, replaces: bool = False) -> None:
        self.handoff = Handoff(replaces=replaces, check_open=lambda: None)
        self.handoff.mirror = SimpleNamespace(layout=LAYOUT)  # type: ignore[assignment]
        self.written: list[Step] = []
        self.fail: Callable[[Step], None] = lambda step: None

    def put(self, step: Step) -> None:
        self.handoff.acquire(LAYOUT)
        self.handoff.put(step)

    def write(self, step: Step) -> None:
        self.written.append(step)
        if isinstance(step, CapturedStep):
            self.handoff.release_mirror()
        self.fail(step)

    def finish(self) -> None:
        """Run the writer until no step waits."""
        self.handoff.close()
        self.handoff.serve(self.write)


def test_a_step_that_replaces_a_waiting_one_includes_its_changes_and_number() -> None:
    line = Line(replaces=True)
    for number in range(3):
        line.put(captured(number))
    line.finish()
    (step,) = line.written
    assert isinstance(step, CapturedStep)
    assert step.label.number == 2
    assert step.label.skipped == (0, 1)
    joined: Any = step.scan
    assert joined == ((0, 1), 2)
    assert step.scan_seconds == 3.0


@pytest.mark.parametrize("other", [LAYOUT, OTHER])
def test_a_caller_waits_for_the_slot_or_until_no_step_is_in_progress(other: Any) -> None:
    line = Line(replaces=other is OTHER)
    line.put(captured(0))
    seen: list[int] = []

    def capture() -> None:
        line.handoff.acquire(other)
        seen.append(len(line.written))
        line.handoff.abandon()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(capture)
        if other is OTHER:
            line.fail = lambda step: seen.append(-1)  # runs before the capture: it is in progress
        line.finish()
        waiting.result(PATIENCE)
    assert seen == ([-1, 1] if other is OTHER else [1])


def test_a_failed_capture_drops_the_mirror_and_the_step_in_it() -> None:
    line = Line(replaces=True)
    line.put(captured(0))
    line.handoff.acquire(LAYOUT)
    line.handoff.abandon()
    assert line.handoff.mirror is None
    assert line.handoff.drain(0)
    with pytest.raises(InvalidInputError, match="step 0 was not published") as caught:
        line.handoff.acquire(LAYOUT)
    assert caught.value.code is ErrorCode.SOURCE_CHANGED
    line.handoff.acquire(OTHER)  # the failure was raised, and the mirror is free


def test_a_failed_capture_keeps_an_encoded_step_in_the_slot() -> None:
    line = Line(replaces=True)
    line.put(encoded(0))
    line.handoff.acquire(LAYOUT)
    line.handoff.abandon()
    line.finish()
    assert [step.label.number for step in line.written] == [0]


def test_each_failure_is_raised_once_and_in_order() -> None:
    line = Line()

    def fail(step: Step) -> None:
        raise ValueError(step.label.number)

    line.fail = fail
    for number in (0, 1):
        line.handoff.put(captured(number))
        line.finish()
    assert line.handoff.losses() == ["step 0: 0", "step 1: 1"]
    for number in (0, 1):
        with pytest.raises(ValueError, match=str(number)):
            line.handoff.raise_failure()
    line.handoff.raise_failure()
    assert line.handoff.losses() == []


def test_after_a_conflict_nothing_is_written_and_every_call_raises_it() -> None:
    line = Line()
    conflict = ConflictError(ErrorCode.REF_MOVED, "moved by another writer")

    def fail(step: Step) -> None:
        if step.label.number == 0:
            line.put(captured(1))
        raise conflict

    line.fail = fail
    line.put(captured(0))
    line.finish()
    assert [step.label.number for step in line.written] == [0]
    assert len(line.handoff.losses()) == 2
    for call in (line.handoff.raise_failure, lambda: line.handoff.acquire(LAYOUT)) * 2:
        with pytest.raises(ConflictError):
            call()


def test_later_failures_are_notes_of_the_first() -> None:
    line = Line()
    line.fail = lambda step: (_ for _ in ()).throw(ValueError(step.label.number))
    for number in (0, 1):
        line.handoff.put(captured(number))
        line.finish()
    with pytest.raises(ValueError, match="0") as caught:
        line.handoff.raise_all()
    assert caught.value.__notes__ == ["also, step 1: 1"]


def test_a_step_that_is_not_written_is_named_as_lost() -> None:
    line = Line()
    line.put(captured(7))
    (loss,) = line.handoff.losses()
    assert loss == "step 7: the program ended before it was written"
