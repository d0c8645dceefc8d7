"""A checkout that a power failure interrupts leaves no half-written file under its name.

A file system may write names before bytes, so every draft must be synced, after its last write and
before it is renamed; and folders after that, before anything is removed.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import ErrorCode, StoreError
from casweights.testing.trees import read_tree, write_tree
from tests.faults.watched_os import watched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from tests.faults.watched_os import Call

OLD = {"a": b"old", "gone": b"1", "deep/down/gone": b"2"}
NEW = {"a": b"new", "empty": b"", "big": bytes(range(256)) * 2000, "deep/down/b": b"b", "x/y": b"y"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Repository]:
    write_tree(OLD, tmp_path / "old")
    write_tree(NEW, tmp_path / "new")
    config = casweights.StoreConfig(chunk_size=1 << 16)
    with casweights.open("memory://", create=True, config=config) as repository:
        repository.commit(tmp_path / "old")
        repository.commit(tmp_path / "new")
        yield repository


class Journal:
    """Tracks the changes that a power failure may undo, and fails where that would do harm."""

    def __init__(self) -> None:
        self.dirty_files: set[int] = set()  # inodes
        self.dirty_folders: set[int] = set()
        self.renamed = 0
        self.removed = 0

    def __call__(self, call: Call) -> None:
        inode = {name: self._inode(value) for name, value in call.options.items() if "fd" in name}
        match call.name:
            case "pwrite" | "truncate":
                self.dirty_files.add(os.fstat(call.args[0]).st_ino)
            case "mkdir":
                self.dirty_folders.add(inode["dir_fd"])
            case "fsync":
                self.dirty_files.discard(os.fstat(call.args[0]).st_ino)
                self.dirty_folders.discard(os.fstat(call.args[0]).st_ino)
            case "replace":
                draft = os.stat(call.args[0], dir_fd=call.options["src_dir_fd"])
                assert draft.st_ino not in self.dirty_files, f"{call.args[1]} is not on the disk"
                self.dirty_folders.add(inode["dst_dir_fd"])
                self.renamed += 1
            case "unlink" if call.args[0] == "gone":
                assert not self.dirty_folders, "names that replace it are not on the disk"
                self.removed += 1

    def _inode(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_ino


@pytest.mark.parametrize("start", [{}, OLD], ids=["fresh", "over"])
@pytest.mark.parametrize("include", [None, ["big", "empty"]], ids=["all", "part"])
def test_files_are_synced_before_they_get_their_names(
    store: Repository, tmp_path: Path, start: dict[str, bytes], include: list[str] | None
) -> None:
    write_tree(start, tmp_path / "out")
    journal = Journal()
    with watched(journal):
        store.checkout("main", tmp_path / "out", include=include, delete=include is None)
    staging = {folder for folder in journal.dirty_folders if folder_is_gone(tmp_path, folder)}
    assert journal.dirty_folders == staging
    assert journal.dirty_files == set()
    assert journal.renamed == (2 if include else 5)
    assert journal.removed == (2 if start and include is None else 0)


def folder_is_gone(root: Path, inode: int) -> bool:
    return all(path.stat().st_ino != inode for path in (root, *root.rglob("*")))


def test_new_folders_are_synced(store: Repository, tmp_path: Path) -> None:
    synced = set()

    def note(call: Call) -> None:
        if call.name == "fsync":
            synced.add(os.fstat(call.args[0]).st_ino)

    with watched(note):
        store.checkout("main", tmp_path / "a/b/out")
    folders = ("", "a", "a/b", "a/b/out", "a/b/out/deep", "a/b/out/deep/down", "a/b/out/x")
    assert synced >= {(tmp_path / folder).stat().st_ino for folder in folders}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_checkout_succeeds_on_a_file_system_that_cannot_sync_folders(
    store: Repository, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_sync(monkeypatch, stat.S_IFDIR, number)
    store.checkout("main", tmp_path / "out")
    assert read_tree(tmp_path / "out") == NEW


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFREG])
def test_a_failed_sync_is_an_error(
    store: Repository, tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_sync(monkeypatch, kind, errno.EIO)
    write_tree(OLD, tmp_path / "out")
    with pytest.raises(StoreError) as caught:
        store.checkout("main", tmp_path / "out")
    assert caught.value.code is ErrorCode.IO_FAILED
    assert kind == stat.S_IFDIR or read_tree(tmp_path / "out") == OLD


def refuse_to_sync(monkeypatch: pytest.MonkeyPatch, kind: int, number: int) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_IFMT(os.fstat(descriptor).st_mode) == kind:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
