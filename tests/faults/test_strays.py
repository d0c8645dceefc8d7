"""Entries of a store's folder that are not objects: `verify` names them, and others ignore them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.errors import ErrorCode, NotFoundError, StoreError
from casweights.stores.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("packs_apart")

PLACES = [
    "odd",
    "refs/odd",
    "refs/heads/odd",
    "refs/heads/odd/000000000001.ref",
    "refs/heads/main/000000000009.ref",
    "refs/tags/v1/000000000009.ref",
    f"snapshots/{'ab' * 32}",
    f"packs/{'ab' * 32}",
    "packs/odd",
]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)  # the path itself may be too long
        try:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_bytes(b"x")


def make_unprintable(path: Path) -> None:
    Path(os.fsdecode(os.fsencode(path) + b"\xff")).write_bytes(b"x")


KINDS: dict[str, Callable[[Path], object]] = {
    "named pipe": os.mkfifo,
    "socket": make_socket,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link into a file": lambda path: path.symlink_to("/etc/passwd/nothing"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "file in a folder": make_folder,
    "name that is not UTF-8": make_unprintable,
}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise an error in a block that takes longer than this number of seconds."""

    def interrupt(*_: object) -> None:
        raise AssertionError(f"this takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    with casweights.open(tmp_path / "store", create=True) as repo:
        repo.tag("v1", repo.commit(tmp_path / "model"))
    return LocalStore(tmp_path / "store")


def place_everywhere(store: LocalStore, make: Callable[[Path], object]) -> list[str]:
    """Make a stray in every folder, unless its name is taken; return the paths of the strays."""
    made = []
    for place in PLACES:
        path = store.root / place
        if os.path.lexists(path.parent) and not path.parent.is_dir():
            continue
        path.parent.mkdir(exist_ok=True)
        if not os.path.lexists(path):
            make(path)
            made.append(place)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_only_verify_reports_entries_that_are_not_objects(
    store: LocalStore, tmp_path: Path, kind: str
) -> None:
    made = place_everywhere(store, KINDS[kind])
    (tmp_path / "model" / "more.bin").write_bytes(b"more")
    with (
        at_most(60),
        casweights.open(store) as repo,
        casweights.open(tmp_path / "target", create=True) as target,
    ):
        first = repo.resolve("main")
        assert repo.branches() == {"main": first}
        assert repo.tags() == {"v1": first}
        assert [version.id for version in repo.log()] == [first]
        assert repo.resolve(str(first)[:8]) == first
        assert len(repo.stats().versions) == 1
        second = repo.commit(tmp_path / "model", parent=first, branch="more").id
        assert repo.repack().packs == 1
        repo.checkout(second, tmp_path / "out")
        repo.push(target)
        repo.push(target, unnamed=True)
        problems = [str(problem) for problem in repo.verify().problems]
        assert target.verify().problems == ()
    for place in made:
        assert any(place in problem for problem in problems), place
    assert len(problems) == len(made)


@pytest.mark.parametrize("kind", ["named pipe", "socket", "link to a device", "link to itself"])
def test_an_entry_that_is_not_a_file_cannot_be_read(store: LocalStore, kind: str) -> None:
    KINDS[kind](store.root / "odd")
    for read in (
        lambda: store.get("odd", 0, 1),
        lambda: store.size("odd"),
        lambda: store.read("odd", 9),
    ):
        with at_most(60), pytest.raises(NotFoundError, match="odd"):
            read()


def fail_to_list(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make listing a folder fail as for a user without permission: tests may run as root."""
    scan = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("place", ["refs/heads/odd", "packs/odd", "snapshots/odd"])
def test_only_verify_reports_a_folder_that_cannot_be_read(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (store.root / place).mkdir()
    fail_to_list(monkeypatch, store.root / place)
    with casweights.open(store) as repo:
        repo.commit(tmp_path / "model", message="more")
        assert list(repo.branches()) == ["main"]
        (problem,) = repo.verify().problems
    assert place in str(problem)
    assert "Permission denied" in str(problem)


@pytest.mark.parametrize("folder", ["packs", "snapshots", "refs/heads", "refs/heads/main"])
def test_a_folder_of_the_store_itself_that_cannot_be_read_is_an_error(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """The folder must not be taken for an empty one."""
    fail_to_list(monkeypatch, store.root / folder)
    with pytest.raises(StoreError, match=folder) as caught:
        list(store.list(f"{folder}/"))
    assert caught.value.code is ErrorCode.NO_PERMISSION


@pytest.mark.parametrize("kind", ["named pipe", "dangling link", "file in a folder"])
@pytest.mark.parametrize("folder", ["packs", "snapshots", "refs/heads/main"])
def test_a_commit_fails_if_a_stray_has_the_name_of_its_object(
    store: LocalStore, tmp_path: Path, kind: str, folder: str
) -> None:
    """The stray must not be taken for an object that another writer has put."""
    shutil.copytree(store.root, tmp_path / "copy")
    (tmp_path / "model" / "weights.bin").write_bytes(b"other weights")
    with casweights.open(tmp_path / "copy") as repo:
        version = repo.commit(tmp_path / "model")
    new = {path.name for path in (tmp_path / "copy" / folder).iterdir()}
    (name,) = new - {path.name for path in (store.root / folder).iterdir()}
    KINDS[kind](store.root / folder / name)
    with casweights.open(store) as repo:
        with pytest.raises(StoreError, match=f"{folder}/{name}: .* is in the way"):
            repo.commit(tmp_path / "model", time=version.time)
        assert repo.resolve("main") != version.id
