"""Many writers in one store: no version is lost."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.database.refs import Refs
from casweights.errors import ConflictError, ErrorCode
from casweights.stores.base import ObjectStore
from casweights.stores.wrapper import WrapperStore
from tests.racing import seen_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.system.buffers import Buffer
    from casweights.testing import CountingStore

WRITERS, COMMITS = 4, 8

WRITER = """
import sys, casweights
from pathlib import Path
store, source, writer, commits = sys.argv[1:]
with casweights.open(store) as repo:
    for n in range(int(commits)):
        Path(source).write_text(f"{writer} {n}")
        while True:
            try:
                print(repo.commit(source).id, flush=True)
                break
            except casweights.ConflictError as error:
                print("conflict", error.snapshot, flush=True)
"""


class Meeting(WrapperStore):
    """Runs another writer once, before the first object whose name begins with `prefix` is put."""

    def __init__(self, inner: ObjectStore, prefix: str, other: Callable[[], object]) -> None:
        super().__init__(inner)
        self.prefix = prefix
        self.others = [other]

    batch = ObjectStore.batch

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if name.startswith(self.prefix) and self.others:
            self.others.pop()()
        return super().put(name, parts)


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize("prefix", ["", "snapshots/", "refs/"])
def test_the_slower_of_two_writers_gets_a_conflict_and_its_version_is_stored(
    repo: Repository, objects: CountingStore, prefix: str
) -> None:
    base = repo.commit({"w": torch.zeros(5)})
    theirs: list[SnapshotId] = []
    meeting = Meeting(objects, prefix, lambda: theirs.append(repo.commit({"w": "theirs"}).id))
    with casweights.open(meeting) as late:
        state = {"w": torch.arange(100_000)}
        with pytest.raises(ConflictError, match="nothing is uploaded twice") as caught:
            late.commit(state)
        assert caught.value.code is ErrorCode.REF_MOVED
        ours = caught.value.snapshot
        assert ours is not None
        assert repo.resolve("main") == theirs[0]
        assert repo.load(ours)["w"].equal(state["w"])
        assert repo.snapshot(ours).parents == (base.id,)
        objects.reset()
        again = late.commit(state)
        assert not any(name.startswith("packs/") for name, _ in objects.writes)
        assert not repo.database.snapshots.load_stored(again.id).frames
    assert [version.id for version in repo.log()] == [again.id, theirs[0], base.id]


def test_creating_a_branch_that_another_writer_just_created_is_a_conflict(
    repo: Repository, objects: CountingStore
) -> None:
    meeting = Meeting(objects, "refs/", lambda: repo.commit({"n": 1}, branch="new"))
    with casweights.open(meeting) as late, pytest.raises(ConflictError):
        late.commit({"n": 2}, branch="new")
    assert repo.load("new") == {"n": 1}


@pytest.mark.usefixtures("both_forms")
def test_committing_to_a_branch_that_was_deleted_during_the_commit_is_a_conflict(
    repo: Repository, objects: CountingStore
) -> None:
    repo.commit({"n": 1})
    meeting = Meeting(objects, "", lambda: repo.delete_branch("main"))
    with casweights.open(meeting) as late, pytest.raises(ConflictError):
        late.commit({"w": torch.ones(1)})
    assert repo.branches() == {}


def test_moving_a_branch_that_was_deleted_and_recreated_is_a_conflict(
    repo: Repository, objects: CountingStore
) -> None:
    """The new branch has as many moves as the old one."""
    first = repo.commit({"n": 1})
    other = repo.commit({"n": 2}, branch="other")
    refs = Refs(objects)
    head = refs.head("main")
    repo.delete_branch("main")
    repo.branch("main", other)
    with pytest.raises(ConflictError):
        refs.advance("main", head, first.id, ready=seen_now)
    assert repo.resolve("main") == other.id


def test_creating_a_tag_that_another_writer_just_created_is_a_conflict(
    repo: Repository, objects: CountingStore
) -> None:
    first, second = repo.commit({"n": 1}), repo.commit({"n": 2})
    meeting = Meeting(objects, "refs/tags/", lambda: repo.tag("v1", first))
    with casweights.open(meeting) as late, pytest.raises(ConflictError):
        late.tag("v1", second)
    assert repo.tags() == {"v1": first.id}


def check(repo: Repository, done: list[SnapshotId], lost: list[SnapshotId]) -> None:
    """Check that the log has the versions of all writers, and that lost ones are readable."""
    history = [version.id for version in repo.log()]
    assert sorted(history) == sorted(done)
    texts = {b"".join(repo.read(snapshot, "who")).decode() for snapshot in history}
    assert texts == {f"{writer} {n}" for writer in range(WRITERS) for n in range(COMMITS)}
    for snapshot in lost:
        assert b"".join(repo.read(snapshot, "who")).decode() in texts
    assert not repo.verify().problems


@pytest.mark.usefixtures("both_forms")
def test_threads_with_an_open_store_each_lose_no_version(tmp_path: Path) -> None:
    done: list[SnapshotId] = []
    lost: list[SnapshotId | None] = []
    casweights.open(tmp_path / "store", create=True).close()
    start = threading.Barrier(WRITERS)

    def write(writer: int) -> None:
        source = tmp_path / str(writer) / "who"
        source.parent.mkdir()
        with casweights.open(tmp_path / "store", workers=1) as repo:
            start.wait()
            for n in range(COMMITS):
                source.write_text(f"{writer} {n}")
                while True:
                    try:
                        done.append(repo.commit(source).id)
                        break
                    except ConflictError as error:
                        lost.append(error.snapshot)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))
    with casweights.open(tmp_path / "store") as repo:
        check(repo, done, [snapshot for snapshot in lost if snapshot is not None])
    assert None not in lost


@pytest.mark.usefixtures("both_forms")
def test_threads_that_share_an_open_store_commit_and_load_correctly() -> None:
    """The states have several runs of chunks, so that the threads compete for workers."""
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open("memory://", create=True, config=config) as repo:

        def work(n: int) -> None:
            state = {"w": torch.full((200_000,), n, dtype=torch.int32)}
            snapshot = repo.commit(state, branch=f"b{n % 3}-{n}")
            for _ in range(3):
                assert repo.load(snapshot)["w"].equal(state["w"])
                assert next(repo.log(f"b{n % 3}-{n}")) == snapshot

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(24)))
        assert len(repo.branches()) == 24
        assert not repo.verify().problems


def test_processes_that_commit_to_one_branch_lose_no_version(tmp_path: Path) -> None:
    store = tmp_path / "store"
    casweights.open(store, create=True).close()
    processes = []
    for n in range(WRITERS):
        source = tmp_path / str(n) / "who"
        source.parent.mkdir()
        command = [sys.executable, "-c", WRITER, str(store), str(source), str(n), str(COMMITS)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * WRITERS
    lines = [line.split() for output in outputs for line in output.splitlines()]
    done = [casweights.SnapshotId.from_hex(line[0]) for line in lines if len(line) == 1]
    lost = [casweights.SnapshotId.from_hex(line[1]) for line in lines if len(line) == 2]
    with casweights.open(store) as repo:
        check(repo, done, lost)
