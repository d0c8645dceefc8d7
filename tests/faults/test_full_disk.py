"""A disk fills up: the error says so, nothing is lost, and repeating the command completes it."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import pytest

import casweights
import casweights.database.writer
from casweights import ErrorCode, Reporter, StoreError
from casweights.config import KiB, MiB
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.system.staging import PREFIX
from casweights.testing.faults import Fault, FaultyStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights.events import Stage


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a commit of a few megabytes write several packs."""
    monkeypatch.setattr(casweights.database.writer, "PACK_TARGET", 2 * MiB)


def write_model(folder: Path, files: int, size: int = MiB) -> Path:
    (folder / "sub").mkdir(parents=True)
    for n in range(files):
        (folder / "sub" / f"{n}.bin").write_bytes(os.urandom(size))
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def leftovers(folder: Path) -> list[Path]:
    """Return temporary folders that no open store owns."""
    gc.collect()
    return list(folder.rglob(f"{PREFIX}*"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the files that this process writes to `size` bytes; more is the error EFBIG."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small file system with the given options, or remounts it."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        what = f"remount,{options}" if place.is_mount() else options
        command = ["mount", "-t", "tmpfs", "-o", what, "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("only a privileged user can mount a small disk")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


def commit(store: Path, model: Path) -> None:
    with casweights.open(store, create=True) as repo:
        repo.commit(model)


def commit_fails(store: Path, model: Path) -> None:
    with casweights.open(store) as repo:
        with pytest.raises(StoreError) as caught:
            repo.commit(model, message="second")
        assert caught.value.code is ErrorCode.NO_SPACE
        assert list(store.glob(f"{PREFIX}*/*")) == [], "half an object takes space"


def assert_intact(store: Path, scratch: Path, *versions: Path) -> None:
    """Check that the store contains exactly these versions, newest first, as committed."""
    assert leftovers(store) == []
    with casweights.open(store) as repo:
        assert repo.verify().problems == ()
        for snapshot, version in zip(repo.log(), versions, strict=True):
            repo.checkout(snapshot, scratch, delete=True)
            assert read_files(scratch) == read_files(version)


def assert_nothing_stored_twice(store: Path) -> None:
    with casweights.open(store) as repo:
        assert repo.verify().frames == repo.stats().chunks


@pytest.mark.parametrize("limit", [0, 100, 5000, MiB])
def test_commit_that_exceeds_the_largest_file_can_be_repeated(tmp_path: Path, limit: int) -> None:
    store, first = tmp_path / "store", write_model(tmp_path / "first", 2)
    second = write_model(tmp_path / "second", 6)
    (second / "small.bin").write_bytes(b"small")
    commit(store, first)
    with largest_file(limit):
        commit_fails(store, second)
    assert_intact(store, tmp_path / "scratch", first)
    commit(store, second)
    assert_intact(store, tmp_path / "scratch", second, first)
    assert_nothing_stored_twice(store)


def test_commit_on_a_full_disk_can_be_repeated(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    """Packs that were written stay, and are used once there is space."""
    store, first = disk("size=7m") / "store", write_model(tmp_path / "first", 2)
    second = write_model(tmp_path / "second", 8)
    commit(store, first)
    commit_fails(store, second)
    assert_intact(store, tmp_path / "scratch", first)
    commit_fails(store, second)
    assert_intact(store, tmp_path / "scratch", first)
    arrived = {path: path.stat().st_ino for path in (store / "packs").iterdir()}
    assert len(arrived) > 1
    disk("size=64m")
    commit(store, second)
    assert_intact(store, tmp_path / "scratch", second, first)
    assert_nothing_stored_twice(store)
    assert {path: path.stat().st_ino for path in arrived} == arrived


@pytest.mark.parametrize("inodes", range(2, 11))
def test_commit_on_a_disk_without_inodes_can_be_repeated(
    tmp_path: Path, disk: Callable[[str], Path], inodes: int
) -> None:
    """The number of files and folders is limited, so that each step fails once."""
    store, model = disk(f"size=8m,nr_inodes={inodes}") / "store", write_model(tmp_path / "m", 1)
    with pytest.raises(StoreError) as caught:
        commit(store, model)
    assert caught.value.code is ErrorCode.NO_SPACE
    del caught
    assert leftovers(store) == []
    disk("size=8m,nr_inodes=1000")
    with casweights.open(store, create=True) as repo:
        repo.commit(model, branch="again")
    with casweights.open(store) as repo:
        assert repo.verify().problems == ()
        repo.checkout("again", tmp_path / "scratch")
    assert read_files(tmp_path / "scratch") == read_files(model)


def checkout_fails(store: Path, target: Path, reporter: Reporter | None = None) -> None:
    before = read_files(target)
    with casweights.open(store, reporter=reporter) as repo:
        with pytest.raises(StoreError) as caught:
            repo.checkout("main", target, overwrite=True)
        assert caught.value.code is ErrorCode.NO_SPACE
        assert str(target) in str(caught.value)
    assert leftovers(target) == []
    assert {name: read_files(target)[name] for name in before} == before


def assert_checkout_completes(store: Path, target: Path, model: Path) -> None:
    with casweights.open(store) as repo:
        repo.checkout("main", target, delete=True, overwrite=True)
    assert read_files(target) == read_files(model)
    assert leftovers(target) == []


@pytest.mark.parametrize("limit", [0, 100 * KiB])
@pytest.mark.parametrize("older", [False, True])
def test_checkout_that_exceeds_the_largest_file_can_be_repeated(
    tmp_path: Path, limit: int, older: bool
) -> None:
    model, target = write_model(tmp_path / "model", 3), tmp_path / "target"
    (model / "empty").write_bytes(b"")
    commit(tmp_path / "store", model)
    if older:
        write_model(target, 2)
    files = set(read_files(target))
    with largest_file(limit):
        checkout_fails(tmp_path / "store", target)
    assert set(read_files(target)) == files
    assert_checkout_completes(tmp_path / "store", target, model)


class Filler(Reporter):
    """Fills a disk to the last byte after a checkout has started."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def advanced(self, stage: Stage, nbytes: int) -> None:
        with self.file.open("wb", buffering=0) as out:
            while True:
                try:
                    out.write(bytes(4096))
                except OSError:
                    return


def test_checkout_onto_a_disk_that_fills_up_can_be_repeated(
    tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    model, place = write_model(tmp_path / "model", 12), disk("size=24m")
    commit(tmp_path / "store", model)
    write_model(place / "target", 1)
    checkout_fails(tmp_path / "store", place / "target", Filler(place / "filler"))
    assert set(read_files(place / "target")) == {"sub/0.bin"}
    (place / "filler").unlink()
    assert_checkout_completes(tmp_path / "store", place / "target", model)


def test_checkout_onto_a_disk_that_is_too_small_writes_nothing(
    tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    model, place = write_model(tmp_path / "model", 4), disk("size=3m")
    commit(tmp_path / "store", model)
    checkout_fails(tmp_path / "store", place / "target")
    assert read_files(place) == {}
    disk("size=16m")
    assert_checkout_completes(tmp_path / "store", place / "target", model)


@pytest.mark.parametrize("inodes", range(2, 9))
def test_checkout_onto_a_disk_without_inodes_leaves_whole_files(
    tmp_path: Path, disk: Callable[[str], Path], inodes: int
) -> None:
    """Each file is whole or missing, at whichever step the checkout stops."""
    model, place = write_model(tmp_path / "model", 3), disk(f"size=8m,nr_inodes={inodes}")
    (model / "empty").write_bytes(b"")
    (model / "other").mkdir()
    (model / "other" / "x").write_bytes(b"x")
    commit(tmp_path / "store", model)
    checkout_fails(tmp_path / "store", place / "target")
    assert read_files(place / "target").items() <= read_files(model).items()
    disk("size=8m,nr_inodes=1000")
    assert_checkout_completes(tmp_path / "store", place / "target", model)


def puts_of(first: Path, second: Path, branch: str) -> list[str]:
    """Return the objects that a commit puts after one to ``main``."""
    store = FaultyStore(MemoryStore())
    with casweights.open(store, create=True) as repo:
        repo.commit(first)
        before = len(store.calls)
        repo.commit(second, branch=branch)
    return [name for method, name in store.calls[before:] if method == "put"]


@pytest.mark.parametrize("branch", ["main", "new"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_commit_can_be_repeated_after_any_put_fails(
    tmp_path: Path, after: bool, branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put fails before it writes, or only its result is lost. A new branch has a signature."""
    monkeypatch.setattr(casweights.database.writer, "PACK_TARGET", MiB // 2)
    first = write_model(tmp_path / "first", 1, MiB // 4)
    second = write_model(tmp_path / "second", 8, MiB // 4)
    puts = puts_of(first, second, branch)
    assert len(puts) >= 6
    assert any(name.startswith("signatures/") for name in puts) == (branch == "new")
    for number in range(1, len(puts) + 1):
        root = tmp_path / f"store{number}"
        with casweights.open(root, create=True) as repo:
            old = repo.commit(first).id
            branches = repo.branches()
        store = FaultyStore(LocalStore(root), [Fault(method="put", call=number, after=after)])
        with casweights.open(store) as repo:
            landed = after and number == len(puts)  # the commit sees that its move counts
            with nullcontext() if landed else pytest.raises(StoreError) as caught:
                repo.commit(second, branch=branch)
            assert caught is None or caught.value.code is ErrorCode.NO_SPACE
            assert store.unused == []
            assert (repo.branches() != branches) == landed
            assert repo.verify().problems == ()
            repo.checkout(old, tmp_path / "scratch", delete=True, overwrite=True)
            assert read_files(tmp_path / "scratch") == read_files(first)
            repo.commit(second, branch=branch)
            assert repo.verify().problems == ()
            assert repo.verify().frames == repo.stats().chunks
            repo.checkout(branch, tmp_path / "scratch", delete=True)
        assert read_files(tmp_path / "scratch") == read_files(second)


@pytest.mark.parametrize("method", ["get", "readinto", "list", "size"])
def test_commit_and_checkout_report_any_read_that_fails(tmp_path: Path, method: str) -> None:
    model = write_model(tmp_path / "model", 2)
    with casweights.open(tmp_path / "store", create=True) as repo:
        repo.commit(model)
    for number in range(1, 100):
        # A copy, because a commit of a new branch reads the ends of all versions.
        root = shutil.copytree(tmp_path / "store", tmp_path / f"{number}")
        store = FaultyStore(LocalStore(root), [Fault(method=method, call=number)])
        try:
            with casweights.open(store) as repo:
                repo.commit(model, branch=f"b{number}")
                repo.checkout("main", tmp_path / "out")
        except StoreError:
            with casweights.open(root) as repo:
                assert repo.verify().problems == ()
            continue
        if store.unused:
            break
        assert method == "list", "the error was swallowed"  # a listing after a move is optional
    assert 1 < number < 99
    assert read_files(tmp_path / "out") == read_files(model)
