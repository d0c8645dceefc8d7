"""Progress bars of stages with several threads."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import pytest

from casweights.events import Stage
from casweights.instrumentation.progress import ProgressBars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Interrupt = Callable[[Any, int, Callable[[], None]], None]


@pytest.fixture
def interrupted() -> Iterator[Interrupt]:
    """Run an action before a line of a function, as another thread could."""
    before = sys.gettrace()

    def interrupt(function: Any, line: int, action: Callable[[], None]) -> None:
        lines = 0

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal lines
            if frame.f_code is not function.__code__:
                return None
            if event == "line":
                if lines == line:
                    action()
                lines += 1
            return trace

        sys.settrace(trace)

    yield interrupt
    sys.settrace(before)


@pytest.mark.parametrize("line", range(3))
@pytest.mark.parametrize("event", ["advanced", "finished"])
def test_no_bar_is_left_if_another_thread_ends_the_stage(
    interrupted: Interrupt, event: str, line: int
) -> None:
    file = io.StringIO()
    bars, ended = ProgressBars(file=file, delay=0), []

    def end() -> None:
        bars.finished(Stage.COMMIT)
        ended.append(line)

    bars.started(Stage.COMMIT, 10)
    interrupted(getattr(ProgressBars, event), line, end)
    getattr(bars, event)(Stage.COMMIT, *([5] if event == "advanced" else []))
    assert ended == [line]
    assert file.getvalue().rsplit("\r", 2)[1].isspace()  # no bar is left
