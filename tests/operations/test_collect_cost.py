"""What collections cost (H10), and what they free (H11)."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import Keep
from casweights.database import reflog
from casweights.database.expired import ExpiredVersions
from casweights.operations import live_frames, maintain
from casweights.operations.marking import Marking
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import check_versions, step, weights
from tests.operations.collecting import KINDS, LONG, commit_all, make_objects, open_repo
from tests.operations.turns import Watched
from tools.bench.lifecycle.chunky import Chunky
from tools.bench.lifecycle.synthetic import add_synthetic

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.results import ExpiredVersion
    from casweights.stores.base import ObjectStore

CHUNKS, MEMORY_FOR_A_FRAME = 100, 200  # bytes; 70 to 150 in single runs
MEMORY_FOR_A_VERSION = 20 << 10  # bytes: 200 MiB for 10,000 versions


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return make_objects(request.param, tmp_path)


@pytest.fixture
def repo(objects: ObjectStore) -> Iterator[Repository]:
    with open_repo(objects, create=True) as repository:
        yield repository


def size_of(objects: ObjectStore) -> int:
    return sum(info.size for info in objects.list())


def commit_small(repo: Repository, count: int, tensors: int = 1) -> None:
    """Commit versions of a few bytes, each with its own list of chunks."""
    base = weights(1)[:100]
    for number in range(count):
        new = step(base, 0.5, number)
        repo.commit({f"layers.{n}.w": new for n in range(tensors)}, branch="main")


def test_h10_a_run_without_work_costs_the_same_after_ten_times_the_versions(
    repo: Repository, objects: ObjectStore
) -> None:
    costs = []
    for more in (20, 180):
        commit_small(repo, more)
        age(objects, LONG)
        repo.gc(apply=True)
        counting = CountingStore(watched := Watched(objects))
        with open_repo(counting) as reader:
            counting.reset()
            begun = watched.calls
            reader.gc(apply=True)
        assert counting.reads == []
        costs.append(watched.calls - begun)
    assert costs[0] == costs[1] < 30


def test_h10_a_run_after_one_that_has_deleted_the_last_of_it_reads_nothing(
    repo: Repository, objects: ObjectStore
) -> None:
    commit_small(repo, 3)
    repo.branch("other", "main")
    repo.commit({"layers.0.w": weights(9)}, branch="other")
    repo.delete_branch("other")
    for _ in range(4):  # first, what maintenance has replaced
        repo.maintain()
        age(objects, LONG)
        if repo.gc(apply=True).finished_bytes:
            break
    else:
        pytest.fail("nothing was deleted")
    counting = CountingStore(objects)
    with open_repo(counting) as reader:
        counting.reset()
        reader.gc(apply=True)
    assert counting.reads == []


def test_h10_memory_grows_with_what_a_run_decides_about_and_not_with_what_it_reads(
    repo: Repository, objects: ObjectStore
) -> None:
    peaks, counts = [], (20, 60)
    for more in counts:
        commit_small(repo, more, tensors=100)
        age(objects, LONG)
        tracemalloc.start()
        with open_repo(objects) as reader:
            assert reader.gc(apply=True).kept
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / counts[1] < MEMORY_FOR_A_VERSION


def test_h10_memory_grows_by_some_bytes_for_each_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_frames, "_TIDY_EVERY", 100)  # so that both stores reach it often
    model, file = Chunky(CHUNKS), tmp_path / "model.safetensors"
    model.write(file)
    peaks, counts = [], (20, 60)
    for count in counts:
        with casweights.open(objects := MemoryStore(), create=True) as repo:
            model.check(repo.commit(file))
            add_synthetic(repo.database, file, count, repo.database.refs.head("main"))
            repo.maintain()
        age(objects, LONG)
        with casweights.open(objects) as repo:
            tracemalloc.start()
            assert not repo.gc(apply=True).objects
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < CHUNKS * MEMORY_FOR_A_FRAME


def test_h10_the_versions_of_an_archive_are_listed_once_and_not_for_each_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed: list[str] = []
    members = Marking._members

    def counted(marking: Marking, archive: str) -> Sequence[SnapshotId]:
        listed.append(archive)
        return members(marking, archive)

    monkeypatch.setattr(Marking, "_members", counted)
    monkeypatch.setattr(maintain, "_RECENT_PACKS", 0)
    monkeypatch.setattr(reflog, "RECENT_MOVES", 2)
    with open_repo(MemoryStore(), create=True) as repo:
        commit_small(repo, 40)
        repo.maintain()
        assert repo.gc().objects == ()
        assert len(listed) == len(set(listed)) > 0


def test_h10_expired_versions_that_are_still_there_cost_each_the_same(
    repo: Repository, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[SnapshotId] = []
    find = ExpiredVersions.find

    def counted(rows: ExpiredVersions, version: SnapshotId) -> ExpiredVersion | None:
        found.append(version)
        return find(rows, version)

    monkeypatch.setattr(ExpiredVersions, "find", counted)
    costs = []
    for more in (30, 90):
        commit_small(repo, more)
        repo.expire(Keep(last=1), apply=True)
        found.clear()
        repo.gc()
        costs.append(len(found))
    assert costs[1] < 5 * costs[0], "four times as many versions"


def test_h11_what_was_let_go_is_free_again(
    repo: Repository, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted branches and tags, and expired versions."""
    monkeypatch.setattr(reflog, "RECENT_MOVES", 2)  # in a bucket, moves are versions
    kept = commit_all(repo, "main", 2)
    first = size_of(objects)
    last = {"w": weights(2, 80)}
    version = repo.commit(last, branch="run").id
    alone, one = size_of(objects), size_of(objects) - first
    for seed in (50, 60, 70):
        made = commit_all(repo, f"b{seed}", 3, seed)
        repo.tag(f"t{seed}", next(iter(made)))
    for seed in range(81, 90):
        last = {"w": weights(2, seed)}
        version = repo.commit(last, branch="run").id
    assert size_of(objects) > 5 * alone
    for seed in (50, 60, 70):
        repo.delete_branch(f"b{seed}")
        repo.delete_tag(f"t{seed}")
    repo.expire(Keep(branches="run", last=1), apply=True)
    for _ in repo.database.refs.trim():
        pass
    for _ in range(3):
        age(objects, LONG)
        repo.gc(apply=True)
        repo.maintain()
    moves = one if isinstance(objects, Bucket) else 0  # the last move but one is a version, too
    assert size_of(objects) - moves < 1.05 * alone
    check_versions(objects, {**kept, version: last})


def test_a_run_that_reads_nothing_counts_the_same_objects() -> None:
    """In a bucket, versions are moves of branches, which are no candidates and stay."""
    objects = Bucket()
    with open_repo(objects, create=True) as repo:
        commit_all(repo, "main", 5)
        assert [repo.gc(apply=True).kept for _ in range(3)] == [5, 5, 5]
