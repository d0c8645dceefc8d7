"""Versions of programs that end without closing their publishers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import casweights
from casweights import Publisher
from casweights.errors import InvalidInputError, NotFoundError
from tests.sync.exit_driver import LIMIT, PROGRAMS

LOST = r"not stored in branch 'live' of .*store: "
ENDED = ": the program ended before it was written"


class End(NamedTuple):
    """How a program ended.

    Attributes:
        status: The exit status.
        steps: The stored steps.
        said: Parts of its log lines on versions, in order; there are no other such lines.
    """

    status: int = 0
    steps: tuple[int, ...] = ()
    said: tuple[str, ...] = ()


ENDS = {
    "end_normally": End(steps=(1, 2)),
    "end_with_a_status": End(7, steps=(1, 2)),
    "end_with_an_error": End(1, steps=(1, 2)),
    "end_before_another_thread": End(steps=(1, 2)),
    "end_of_a_forked_child": End(steps=(1, 2)),
    "end_of_a_spawned_child": End(steps=(1, 2)),
    "end_while_a_write_hangs": End(said=(f"step 1{ENDED}", f"step 2{ENDED}")),
    "end_while_a_pack_hangs": End(said=(f"step 1{ENDED}",)),
    "end_without_a_wait": End(said=(f"step 1{ENDED}", f"step 2{ENDED}")),
    "end_by_an_interrupt": End(said=(f"step 1{ENDED}", f"step 2{ENDED}")),
    "end_with_a_failure": End(said=("step 1: the disk is full",)),
    "end_with_a_conflict": End(
        said=("step 1: branch 'live' was moved or deleted by another writer",)
    ),
    "end_with_failures_that_were_raised": End(5),
    "fork_while_a_write_hangs": End(9, said=(f"step 1{ENDED}", f"step 2{ENDED}")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the results of all programs."""
    folder = tmp_path_factory.mktemp("programs")
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-m",
            "tests.sync.exit_driver",
            folder,
        ],
        check=True,
        timeout=3 * LIMIT,
        cwd=Path(__file__).parents[2],
    )
    return folder


def stored(root: Path) -> tuple[int, ...]:
    with casweights.open(root) as store:
        assert not store.verify().problems
        try:
            return tuple(version.metadata.get("step", 0) for version in store.log("live"))[::-1]
        except NotFoundError:
            return ()


@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_are_stored_or_named_when_a_program_ends(folder: Path, name: str) -> None:
    end, said = ENDS[name], (folder / name / "stderr").read_text()
    assert json.loads((folder / name / "status").read_text()) == end.status, said
    assert len(re.findall(LOST, said)) == len(end.said), said
    assert re.search(".*".join(LOST + re.escape(part) for part in end.said), said, re.DOTALL), said
    assert tuple(step for step in stored(folder / name / "store") if step) == end.steps


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_negative_exit_timeout_is_refused(tmp_path: Path, seconds: float) -> None:
    with (
        casweights.open(tmp_path, create=True) as store,
        pytest.raises(InvalidInputError, match="exit_timeout"),
    ):
        Publisher(store, exit_timeout=seconds)


def test_an_infinite_exit_timeout_is_accepted(tmp_path: Path) -> None:
    with casweights.open(tmp_path, create=True) as store:
        Publisher(store, exit_timeout=float("inf")).close()
