"""Progress: bars in a terminal, lines of JSON for programs, and none for shell scripts."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest

from casweights.cli._output import Mode, Output
from casweights.cli._progress import JsonProgress, Results
from casweights.events import Reporter, Stage
from casweights.instrumentation.progress import ProgressBars

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Run


def test_a_bar_grows_and_disappears() -> None:
    file = io.StringIO()
    bars = ProgressBars(file=file, delay=0)
    bars.started(Stage.COMMIT, 2_000_000)
    assert "Committing:   0%" in file.getvalue()
    bars.advanced(Stage.COMMIT, 1_000_000)
    bars.advanced(Stage.COMMIT, 1_000_000)
    bars.finished(Stage.COMMIT)
    assert "2.00M" in file.getvalue()
    assert file.getvalue().endswith("\r")  # on an empty line again
    assert file.getvalue().rsplit("\r", 2)[1].isspace()


def test_every_stage_has_a_title() -> None:
    for stage in Stage:
        file = io.StringIO()
        bars = ProgressBars(file=file, delay=0)
        bars.started(stage, 1)
        bars.finished(stage)
        assert "ing" in file.getvalue()


def test_a_short_stage_shows_no_bar() -> None:
    file = io.StringIO()
    bars = ProgressBars(file=file, delay=3600)
    bars.started(Stage.VERIFY, 10)
    bars.advanced(Stage.VERIFY, 10)
    bars.finished(Stage.VERIFY)
    assert "Verifying" not in file.getvalue()


def test_json_progress_is_written_once_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    out, clock = Output(), [0.0]
    out.mode = Mode.JSON
    progress = JsonProgress(out, clock=lambda: clock[-1])
    progress.started(Stage.CHECKOUT, 100)
    for seconds in (0.5, 0.9, 1.0, 1.5, 1.9, 7.0, 7.5):
        clock.append(seconds)
        progress.advanced(Stage.CHECKOUT, 10)
    progress.finished(Stage.CHECKOUT)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        {
            "message_type": "progress",
            "stage": "checkout",
            "done_bytes": done,
            "total_bytes": 100,
        }
        for done in (30, 60)
    ]


def test_json_events_are_flushed_at_once() -> None:
    out, pipe = Output(), io.BytesIO()
    out.mode = Mode.JSON
    stream = io.TextIOWrapper(pipe)
    with redirect_stdout(stream):
        out.event("progress", {})
        assert pipe.getvalue() == b'{"message_type": "progress"}\n'


@contextmanager
def terminal() -> Iterator[None]:
    """Make standard error a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream, redirect_stderr(stream):
        yield
    os.close(ours)


def listener(mode: Mode) -> type[Reporter]:
    out = Output()
    out.mode = mode
    return type(Results(out)._progress)


def test_each_mode_has_its_progress_reporter() -> None:
    with terminal():
        assert listener(Mode.HUMAN) is ProgressBars
        assert listener(Mode.JSON) is JsonProgress
        assert listener(Mode.QUIET) is Reporter


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((value, Reporter) for value in ("1", "true", "ON", "Yes")),
        *((value, ProgressBars) for value in ("0", "", "off")),
    ],
)
def test_a_variable_turns_bars_off(
    monkeypatch: pytest.MonkeyPatch, value: str, kind: type[Reporter]
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", value)
    with terminal():
        assert listener(Mode.HUMAN) is kind


def test_a_pipe_gets_no_bars() -> None:
    assert not sys.stderr.isatty()
    assert listener(Mode.HUMAN) is Reporter


def test_commands_without_errors_leave_standard_error_empty(run: Run, store: Path) -> None:
    for args in (("commit", "model"), ("checkout", "main", "out"), ("verify",), ("repack",)):
        assert run(*args).stderr == ""
        assert run(*args, "--json").stderr == ""
