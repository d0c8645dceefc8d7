"""Other processes change the target directory at every step of a checkout."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import CasweightsError, ConflictError, ErrorCode
from casweights.system.staging import PREFIX
from casweights.testing.trees import read_tree, write_tree
from tests.faults.watched_os import watched
from tests.lengths import moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository
    from tests.faults.watched_os import Call

OLD = {
    "top.bin": b"old" * 99,
    "sub/inner.bin": b"o" * 99,
    "sub/extra": b"+",
    "sub/deep/extra": b"-",
}
NEW = {"top.bin": b"top" * 100, "sub/inner.bin": b"inner" * 100, "sub/deep/x": b"x" * 100}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Repository]:
    write_tree(OLD, tmp_path / "old")
    write_tree(NEW, tmp_path / "new")
    with casweights.open("memory://", create=True, workers=1) as repository:
        repository.commit(tmp_path / "old")
        repository.commit(tmp_path / "new")
        yield repository


class Steps:
    """Runs an action before the call of a given number.

    Attributes:
        reached: Whether there was such a call.
        call: That call.
    """

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self._left = number
        self._action = action
        self.call: Call | None = None

    def __call__(self, call: Call) -> None:
        if self._left == 0:
            self.call = call
            self._action()
        self._left -= 1


def look(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in (folder, *folder.rglob("*"))
    }


class Swap:
    """Replaces a folder of the target by a link to a folder outside of it.

    Attributes:
        done: Whether there was a folder to replace, or a place for a link.
    """

    def __init__(self, target: Path, folder: str, outside: Path, moved: Path) -> None:
        self._target, self._folder, self._outside, self.moved = target, folder, outside, moved
        self._place: Path | None = None

    def __call__(self) -> None:
        found = list(self._target.glob(self._folder))
        place = found[0] if found else self._target / self._folder
        if "*" in place.name or not place.parent.is_dir():
            return
        if found:
            place.rename(self.moved)
        place.symlink_to(self._outside)
        self._place = place

    def undo(self) -> None:
        if self._place is not None and self._place.is_symlink():
            self._place.unlink()
            if self.moved.exists():
                self.moved.rename(self._place)


@pytest.mark.parametrize(
    ("folder", "start", "delete"),
    [
        ("sub", {}, False),
        ("sub", OLD, True),
        ("sub/deep", OLD, True),
        (f"{PREFIX}*", OLD, True),
    ],
    ids=["fresh", "folder", "inner folder", "staging"],
)
def test_link_that_replaces_a_folder_at_any_step_is_not_followed(
    store: Repository, tmp_path: Path, folder: str, start: dict[str, bytes], delete: bool
) -> None:
    outside = tmp_path / "outside"
    write_tree({"inner.bin": b"o" * 99, "extra": b"+", "deep/extra": b"-", "0": b"0"}, outside)
    before = look(outside)
    outcomes = set()
    for step in moments(3, folder):
        target = tmp_path / f"target{step}"
        write_tree(start, target)
        swap = Swap(target, folder, outside, tmp_path / f"moved{step}")
        steps = Steps(step, swap)
        try:
            with watched(steps):
                store.checkout("main", target, delete=delete)
            outcomes.add("done")
        except CasweightsError as error:
            outcomes.add(type(error).__name__)
        assert look(outside) == before
        swap.undo()
        if steps.call is None:
            break
        store.checkout("main", target, delete=delete)
        assert {path: read_tree(target).get(path) for path in NEW} == NEW
        assert not delete or PREFIX in folder or read_tree(target) == NEW
    assert step > 50
    assert "done" in outcomes
    assert len(outcomes) > 1 or PREFIX in folder


def edit_in_place(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"work of hours")


def edit_by_rename(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    draft = file.parent.parent.parent / "editor's draft"
    draft.write_bytes(b"work of hours")
    draft.replace(file)


def become_a_pipe(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("sub/inner.bin", edit_in_place),
        ("sub/inner.bin", edit_by_rename),
        ("sub/inner.bin", become_a_pipe),
        ("sub/extra", edit_in_place),
        ("sub/deep/x", edit_by_rename),
    ],
)
def test_file_that_changes_at_any_step_is_left_alone(
    store: Repository, tmp_path: Path, name: str, edit: Callable[[Path], None]
) -> None:
    """The later change wins, except for one between the last check and the rename."""
    refused = 0
    for step in moments(3, name):
        target = tmp_path / f"target{step}"
        write_tree(OLD, target)
        file = target / name
        steps = Steps(step, lambda file=file: edit(file))  # type: ignore[misc]
        try:
            with watched(steps):
                store.checkout("main", target, delete=True)
        except ConflictError as error:
            refused += (error.code, error.files) == (ErrorCode.UNSAVED_FILES, (name,))
        if steps.call is None:
            break
        if steps.call.name in ("replace", "unlink") and file.name in steps.call.args:
            continue  # no system call can close this gap
        assert is_edited(file), (step, steps.call)
    assert refused > 6


def is_edited(file: Path) -> bool:
    return file.is_fifo() or (file.is_file() and file.read_bytes() == b"work of hours")


def test_a_recently_changed_file_is_read_again(store: Repository, tmp_path: Path) -> None:
    """If a file system counts in seconds, a change may not alter the time."""
    target, now = tmp_path / "target", time.time_ns() // 10**9 * 10**9
    write_tree(OLD, target)
    (tmp_path / "link").hardlink_to(target / "top.bin")  # so that the time of change is no evidence
    os.utime(target / "top.bin", ns=(now, now))

    def edit(call: Call) -> None:
        if call.name == "pwrite":
            (target / "top.bin").write_bytes(b"new" * 99)
            os.utime(target / "top.bin", ns=(now, now))

    with watched(edit), pytest.raises(ConflictError) as caught:
        store.checkout("main", target, delete=True)
    assert caught.value.files == ("top.bin",)
    assert read_tree(target) == OLD | {"top.bin": b"new" * 99}


def test_few_descriptors_are_enough_for_deep_and_wide_trees(tmp_path: Path) -> None:
    deep = "/".join("d" * 30)
    write_tree({f"{deep}/x": b"x"} | {f"wide{n}/x": b"x" for n in range(99)}, tmp_path / "model")
    write_tree({f"old{n}/{deep}/x": b"x" for n in range(3)}, tmp_path / "out")
    most = 0

    def measure(call: Call) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/dev/fd")))

    with casweights.open("memory://", create=True, workers=1) as repository:
        version = repository.commit(tmp_path / "model")
        open_before = len(os.listdir("/dev/fd"))
        with watched(measure):
            repository.checkout(version, tmp_path / "out", delete=True)
    assert most <= open_before + 16
    assert read_tree(tmp_path / "out") == read_tree(tmp_path / "model")
