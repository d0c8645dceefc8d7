"""Tests of directories on file systems without hard links, locks, or syncs of folders."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

import casweights
from casweights.database import reflog
from casweights.database.refs import Refs
from casweights.errors import ConflictError, ErrorCode, StoreError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.stores import naming, root
from casweights.stores.local import LocalStore
from casweights.testing import StoreTests
from tests.racing import seen_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from casweights.database.moves import Head
    from casweights.stores.naming import Call
    from casweights.system.buffers import Buffer

CALLS = ("link", "rename", "lock", "sync")
# File systems differ in the error for calls that they do not support.
CODES = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EACCES)
COMBINATIONS = [
    pytest.param(lacking, code, id=f"{'-'.join(lacking)}-{errno.errorcode[code]}")
    for n in (0, 2, 3, 4)
    for lacking, code in zip(itertools.combinations(CALLS, n), itertools.cycle(CODES), strict=False)
] + [
    pytest.param((call,), code, id=f"{call}-{errno.errorcode[code]}")
    for call in CALLS
    for code in CODES
]


def refuse(monkeypatch: pytest.MonkeyPatch, lacking: Iterable[str], code: int) -> None:
    """Make some calls fail, as on a file system that does not support them."""

    def refused(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    fsync = os.fsync

    def fsync_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused()
        fsync(descriptor)

    places: dict[str, tuple[object, str, object]] = {
        "link": (os, "link", refused),
        "rename": (naming, "rename_new", refused),
        "lock": (fcntl, "flock", refused),
        "sync": (os, "fsync", fsync_files),
    }
    for call in lacking:
        monkeypatch.setattr(*places[call])


@pytest.mark.parametrize(("lacking", "code"), COMBINATIONS)
def test_a_store_works_and_reports_its_guarantees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...], code: int
) -> None:
    refuse(monkeypatch, lacking, code)
    source = tmp_path / "model"
    source.mkdir()
    (source / "a.bin").write_bytes(b"a" * 100_000)
    with casweights.open(tmp_path / "store", create=True) as repository:
        assert repository.info().exclusive is not {"link", "rename"}.issubset(lacking)
        assert repository.info().durable is ("sync" not in lacking)
        first = repository.commit(source)
        repository.tag("first", first)
        with casweights.open(tmp_path / "store") as other:
            (source / "a.bin").write_bytes(b"b" * 100_000)
            second = other.commit(source)
        (source / "a.bin").write_bytes(b"c" * 100_000)
        third = repository.commit(source)
        assert [v.id for v in repository.log()] == [third.id, second.id, first.id]
        repository.checkout(second, tmp_path / "out")
        assert (tmp_path / "out/a.bin").read_bytes() == b"b" * 100_000
        repository.repack()
        assert repository.verify().problems == ()


class TestDirectoryThatCanOnlyHoldFiles(StoreTests):
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
        refuse(monkeypatch, CALLS, errno.EPERM)
        store = LocalStore(tmp_path / "store")
        store.create()
        assert not store.probe().exclusive_create
        return store

    @pytest.fixture
    def again(self, store: LocalStore) -> Callable[[], LocalStore]:
        return lambda: LocalStore(store.root)


class TestDirectoryWithoutLinks(StoreTests):
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
        refuse(monkeypatch, ("link",), errno.EPERM)
        store = LocalStore(tmp_path / "store")
        store.create()
        assert store.probe().exclusive_create
        return store

    @pytest.fixture
    def again(self, store: LocalStore) -> Callable[[], LocalStore]:
        return lambda: LocalStore(store.root)


class _Interrupted(LocalStore):
    """A store that lets another writer act right before and right after a `put`."""

    before: Callable[[], object] = staticmethod(lambda: None)
    after: Callable[[], object] = staticmethod(lambda: None)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        self.before()
        created = super().put(name, parts)
        self.after()
        return created


def _after(hook: Callable[[], object], call: Call) -> Call:
    def hooked(path: str, name: str, folder: int) -> None:
        hook()
        call(path, name, folder)

    return hooked


@pytest.mark.parametrize("moment", ["before", "while naming", "after"])
@pytest.mark.parametrize("weak", [(True, True), (True, False), (False, True)])
def test_at_most_one_of_two_writers_at_a_position_moves_the_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, weak: tuple[bool, bool]
) -> None:
    """One client may be able to create objects exclusively while another one is not."""
    monkeypatch.setattr(reflog, "_YIELD_SECONDS", 0.05)
    mine, theirs = _Interrupted(tmp_path), LocalStore(tmp_path)
    for store, is_weak in zip((mine, theirs), weak, strict=True):
        with monkeypatch.context() as patch:
            refuse(patch, ("link", "rename") if is_weak else (), errno.EPERM)
            assert store.probe().exclusive_create is not is_weak
    versions = [SnapshotId(bytes([n]) * 32) for n in range(1, 4)]
    Refs(theirs).advance("main", None, versions[0], ready=seen_now)
    told: list[SnapshotId] = []

    def move(refs: Refs, head: Head | None, version: SnapshotId) -> None:
        with suppress(ConflictError):
            refs.advance("main", head, version, ready=seen_now)
            told.append(version)

    def interrupt() -> None:
        mine.before = mine.after = lambda: None
        move(Refs(theirs), seen, versions[2])

    seen = Refs(mine).head("main")
    if moment == "while naming":  # after the check that the name is free
        monkeypatch.setattr(root, "replace", _after(lambda: mine.before(), naming.replace))
        mine._exclusive_call = mine._exclusive_call and _after(lambda: mine.before(), naming.link)
        mine.put = partial(LocalStore.put, mine)  # type: ignore[method-assign]
        moment = "before"
    setattr(mine, moment, interrupt)
    move(Refs(mine), seen, versions[1])
    assert len(told) <= 1
    head = Refs(LocalStore(tmp_path)).head("main")
    assert head is not None
    assert head.snapshot == (told[0] if told else versions[0])


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_fault_does_not_count_as_a_missing_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse(monkeypatch, ("link",), code)
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError) as caught:
        store.put("name", [b"bytes"])
    assert caught.value.code in (ErrorCode.IO_FAILED, ErrorCode.NO_SPACE)
    assert not store.exists("name")


def test_links_that_replace_files_do_not_count_as_exclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(path: str, name: str, *, dst_dir_fd: int) -> None:
        os.replace(path, name, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "link", careless)
    monkeypatch.setattr(naming, "rename_new", naming.replace)
    assert not LocalStore(tmp_path).probe().exclusive_create


@pytest.mark.parametrize("moment", ["before", "after", "dead"])
def test_one_of_two_creators_of_a_store_wins_although_no_call_is_exclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    refuse(monkeypatch, CALLS, errno.EPERM)
    name, told = names.CONFIG, dict[bytes, bool]()
    rename = os.rename

    def interrupted(source: Any, target: Any, **options: int) -> None:
        if not str(target).startswith(".casweights-claim"):
            return rename(source, target, **options)
        monkeypatch.setattr(os, "rename", rename)
        if moment != "before":
            rename(source, target, **options)
        told[b"theirs"] = LocalStore(tmp_path).put(name, [b"theirs"])
        if moment == "dead":
            raise KeyboardInterrupt
        return None if moment == "after" else rename(source, target, **options)

    mine = LocalStore(tmp_path)
    mine.probe()
    monkeypatch.setattr(os, "rename", interrupted)
    with suppress(KeyboardInterrupt):
        told[b"mine"] = mine.put(name, [b"mine"])
    found = mine.read(name, 10)
    assert b"theirs" in told
    assert [content for content, is_told in told.items() if is_told] == [found] * (moment != "dead")
    assert not list(tmp_path.glob(".casweights-claim*"))
