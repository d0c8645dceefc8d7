"""Tests that folders of a directory are created and removed with their objects."""

from __future__ import annotations

import os
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights.errors import InvalidInputError, StoreError
from casweights.stores.local import LocalStore
from casweights.stores.root import Root

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = ("chmod", "listdir", "lstat", "mkdir", "open", "rmdir", "scandir", "stat", "unlink")


def find(path: str | bytes | os.PathLike[str] | int, dir_fd: int | None, top: Path) -> Any:
    """Return the path that a disk that ignores case resolves a path to."""
    if isinstance(path, int | bytes):
        return path
    begin = Path(f"/proc/self/fd/{dir_fd}").readlink() if dir_fd is not None else Path()
    whole = begin / path
    if not whole.is_relative_to(top):
        return path
    found = top
    for part in whole.relative_to(top).parts:
        entries = LISTDIR(found) if os.path.isdir(found) else []
        same = [entry for entry in entries if entry.lower() == part.lower()]
        found /= same[0] if same else part
    return str(found.relative_to(begin)) if dir_fd is not None else str(found)


LISTDIR = os.listdir


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a disk that keeps the case of names, but ignores it in look-ups."""
    top, is_inside = tmp_path / "disk", False
    top.mkdir()

    def ignoring_case(call: Callable[..., Any], fd: str) -> Callable[..., Any]:
        @wraps(call)
        def found(path: Any = ".", *args: Any, **options: Any) -> Any:
            nonlocal is_inside
            if is_inside:
                return call(path, *args, **options)
            is_inside = True
            try:
                if fd == "dst_dir_fd":
                    args = (find(args[0], options.get(fd), top), *args[1:])
                else:
                    path = find(path, options.get(fd), top)
            finally:
                is_inside = False
            return call(path, *args, **options)

        return found

    for name in CALLS:
        monkeypatch.setattr(os, name, ignoring_case(getattr(os, name), "dir_fd"))
    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, ignoring_case(getattr(os, name), "dst_dir_fd"))
    return top


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "store")
    store.create()
    return store


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").write_bytes(b"one")
    return tmp_path / "model"


def test_a_folder_is_removed_with_its_last_object(store: LocalStore) -> None:
    names = ["refs/heads/a/1", "refs/heads/a/2", "refs/heads/a/b/1", "refs/tags/c/1"]
    store.put_all([(name, [b"x"]) for name in names])
    store.delete(names[0])
    store.delete(names[2])
    assert (store.root / "refs/heads/a").is_dir()
    assert not (store.root / "refs/heads/a/b").exists()
    store.delete(names[1])
    assert os.listdir(store.root / "refs") == ["tags"]
    store.delete(names[3])
    assert os.listdir(store.root / "refs") == []  # it stays: open stores check that it exists
    assert store.put(names[0], [b"x"])


def test_a_folder_that_other_writers_remove_is_created_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    removals = ["refs/heads/main", "refs/heads"]
    real = Root.has

    def remove_first(at: Root, name: str) -> bool:
        found = real(at, name)
        if name.endswith("/1"):
            while removals:
                (store.root / removals.pop(0)).rmdir()
        return found

    store.put("other", [b"x"])
    monkeypatch.setattr(Root, "has", remove_first)
    assert store.put("refs/heads/main/1", [b"x"])
    assert not removals
    assert store.exists("refs/heads/main/1")


def test_a_parent_folder_that_other_writers_remove_is_created_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, removals = os.mkdir, ["refs/heads"]

    def mkdir(path: str, *args: Any, **options: Any) -> None:
        if path == "refs/heads/main" and removals:
            (store.root / removals.pop()).rmdir()
        real(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    assert store.put("refs/heads/main/1", [b"x"])
    assert not removals


def test_put_reports_the_creation_of_an_object_that_is_deleted_at_once(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, other = Root.give_name, LocalStore(store.root)

    def give_name(at: Root, draft: Path, name: str, call: Any) -> bool:
        created = real(at, draft, name, call)
        other.delete(name)
        return created

    monkeypatch.setattr(Root, "give_name", give_name)
    assert store.put("refs/heads/main/1", [b"x"])
    assert not (store.root / "refs/heads").exists()


def test_a_branch_in_another_case_of_a_deleted_one_is_refused(root: Path, model: Path) -> None:
    """The folder of the deleted branch is there, and `undelete` may bring the branch back."""
    with casweights.open(root, create=True) as repository:
        version = repository.commit(model)
        repository.delete_branch("main")
        with pytest.raises(InvalidInputError, match="cannot tell it from the existing 'main'"):
            repository.branch("Main", version)
        assert repository.undelete("main") == version.id


@pytest.mark.parametrize("leftover", ["MAIN", "MAIN/x/y", "MAIN/X"])
def test_folders_without_objects_do_not_count_as_names(
    root: Path, model: Path, leftover: str
) -> None:
    with casweights.open(root, create=True) as repository:
        (root / "refs/heads" / leftover).mkdir(parents=True)
        version = repository.commit(model)
        repository.branch("main/x", version)
        assert repository.branches() == dict.fromkeys(["main", "main/x"], version.id)
        assert sorted(os.listdir(root / "refs/heads")) == ["main"]


def test_an_object_is_not_put_into_a_folder_of_another_spelling(root: Path) -> None:
    store = LocalStore(root)
    store.put("refs/heads/main/1", [b"x"])
    with pytest.raises(StoreError, match="ignores case"):
        store.put("refs/heads/Main/1", [b"x"])
    assert [info.name for info in store.list()] == ["refs/heads/main/1"]
