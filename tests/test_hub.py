"""Tests that a bucket of a local Hub works like a directory, in few requests."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import Keep
from casweights.config import StoreConfig
from casweights.database.reflog import RefLog
from casweights.errors import ConflictError, NotFoundError, UnsupportedError
from casweights.stores.cached import CachedStore
from casweights.stores.hub.store import HubStore
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.testing import CountingStore
from casweights.testing.hub import LocalHub
from casweights.testing.states import assert_same_state
from casweights.testing.trees import read_tree, write_tree
from tests import histories
from tests.histories import CHUNK
from tests.racing import seen_now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.stores.base import ObjectStore
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=CHUNK)
_numbers = count()


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        yield hub


@pytest.fixture
def prefix() -> str:
    return f"store{next(_numbers)}"


def bucket(hub: LocalHub, prefix: str) -> ObjectStore:
    return RetryStore(HubStore("me/weights", prefix, endpoint=hub.url))


@pytest.fixture
def repo(hub: LocalHub, prefix: str) -> Iterator[Repository]:
    with casweights.open(bucket(hub, prefix), create=True, config=CONFIG) as repository:
        yield repository


@pytest.fixture
def again(hub: LocalHub, prefix: str, repo: Repository) -> Iterator[Repository]:
    """The same store, opened like on another machine."""
    with casweights.open(bucket(hub, prefix)) as repository:
        yield repository


def history(count: int) -> list[State]:
    """Return states of a run in which 1 % of the elements change at each step."""
    return list(histories.history(count, 0.01, chunks=8))


def requests(hub: LocalHub) -> dict[str, int]:
    """Return and reset the counts of requests, without telemetry."""
    counts = {name: n for name, n in hub.counters().requests.items() if n and name != "telemetry"}
    hub.reset_counters()
    return counts


def test_states_are_loaded_from_a_bucket_as_committed(repo: Repository, again: Repository) -> None:
    states = history(4)
    versions = [repo.commit(state, message=f"{n}") for n, state in enumerate(states)]
    for version, state in zip(versions, states, strict=True):
        assert_same_state(again.load(version.id), state)
    assert [version.message for version in again.log("main")] == ["3", "2", "1", "0"]
    assert again.verify().problems == ()
    assert again.diff("main~1", "main").nbytes > 0
    assert again.stats().versions[0].id == versions[0].id


def test_a_directory_is_checked_out_from_a_bucket_as_committed(
    repo: Repository, again: Repository, tmp_path: Path
) -> None:
    files = {"config.json": b"{}", "sub/data.bin": bytes(range(256)) * 1000, "empty": b""}
    write_tree(files, tmp_path / "model")
    version = repo.commit(tmp_path / "model")
    again.checkout(version.id, tmp_path / "out")
    assert read_tree(tmp_path / "out") == files
    assert b"".join(again.read(version.id, "sub/data.bin")) == files["sub/data.bin"]


def test_branches_and_tags_work_in_a_bucket(repo: Repository, again: Repository) -> None:
    first, second = (repo.commit({"n": n}) for n in range(2))
    repo.branch("side", first)
    repo.tag("v1", first)
    assert again.branches() == {"main": second.id, "side": first.id}
    assert again.tags() == {"v1": first.id}
    assert again.resolve("main~1") == again.resolve("v1") == first.id
    with pytest.raises(ConflictError):
        again.tag("v1", second)
    with pytest.raises(ConflictError):
        again.branch("side", second)
    again.branch("side", second, force=True)
    again.delete_tag("v1")
    again.delete_branch("side")
    assert repo.branches() == {"main": second.id}
    assert repo.tags() == {}
    assert repo.verify().problems == ()


def test_versions_of_a_bucket_expire(repo: Repository, again: Repository) -> None:
    states = history(6)
    ids = [repo.commit(state).id for state in states]
    assert repo.expire(Keep(last=1, every=3), apply=True).go == 4
    assert [version.number for version in again.log()] == [6, 3]
    with pytest.raises(NotFoundError, match="'main~1' is version 5, which expired"):
        again.resolve("main~1")
    with casweights.open("memory://", create=True, config=CONFIG) as there:
        assert again.push(there).snapshots == 2
        assert_same_state(there.load(ids[2]), states[2])
        assert there.verify().problems == ()
    again.tag("back", str(ids[4]))
    assert [version.number for version in repo.log()] == [6, 5, 3]
    assert repo.verify().problems == ()


@pytest.mark.usefixtures("packs_apart")
def test_all_versions_load_after_a_repack_in_a_bucket(repo: Repository, again: Repository) -> None:
    states = history(6)
    versions = [repo.commit(state) for state in states]
    again.load(versions[-1])
    stats = repo.repack()
    assert stats.packs < stats.old_packs
    for version, state in zip(versions, states, strict=True):
        assert_same_state(again.load(version.id), state)  # although its locators are out of date
    assert again.verify().problems == ()


def test_one_of_two_writers_of_a_branch_gets_a_conflict(
    repo: Repository, again: Repository
) -> None:
    """Both writers start from the same head; the later one gets the error."""
    repo.commit({"n": 0})
    head = again._db.refs.head("main")
    theirs = repo.commit({"n": 1})
    other = again.commit({"n": 2}, branch="other")
    with pytest.raises(ConflictError) as caught:
        again._db.refs.advance("main", head, other.id, ready=seen_now)
    assert caught.value.snapshot == other.id
    assert repo.resolve("main") == theirs.id
    assert again.commit({"n": 2}).parents == (theirs.id,)


def test_a_step_of_a_run_is_one_object(hub: LocalHub, prefix: str) -> None:
    with casweights.open(
        bucket(hub, prefix), create=True, config=CONFIG, cache_size=1 << 24
    ) as repo:
        first, second, third = history(3)
        repo.commit(first)
        repo.commit(second)
        requests(hub)
        repo.commit(third)
        assert requests(hub) == {
            "tree": 2,  # look up the branch, and check the move
            "paths_info": 1,
            "xorb_upload": 1,
            "shard_upload": 1,
            "batch": 1,
        }


def test_a_follower_reads_the_branch_and_a_small_version_at_once(
    hub: LocalHub, prefix: str, repo: Repository
) -> None:
    first, *others = history(4)
    repo.commit(first)
    with casweights.open(bucket(hub, prefix), cache_size=1 << 24) as replica:
        replica.load("heads/main")
        for state in others:
            repo.commit(state)
            requests(hub)
            assert_same_state(replica.load("heads/main"), state)
            counts = requests(hub)
            assert counts == {"tree": 1, "reconstruction": 1, "xorb_read": 1}


def test_loading_a_version_by_its_id_sends_no_look_up(
    hub: LocalHub, prefix: str, repo: Repository
) -> None:
    """Unless the version is a move: then the moves are listed once."""
    [state] = history(1)
    version = repo.commit(state)
    for is_move in (True, False):
        with casweights.open(bucket(hub, prefix)) as reader:
            requests(hub)
            assert_same_state(reader.load(version.id), state)
        counts = requests(hub)
        assert "paths_info" not in counts
        assert counts.get("tree", 0) == is_move
        if is_move:
            repo.delete_branch("main")
            repo.maintain()  # moves the version out of the log of the deleted branch


def test_what_a_version_contains_is_read_from_the_end_of_its_object(
    hub: LocalHub, prefix: str, repo: Repository
) -> None:
    """The header and the list of chunks come with the manifest, and the tensors do not."""
    version = repo.commit(next(histories.history(1, 0.01, chunks=16)))
    with casweights.open(bucket(hub, prefix)) as reader:
        requests(hub)
        snapshot = reader.snapshot(version.id)
        assert len(snapshot.files[0].chunks) == 16
        received = hub.counters().bytes_out
        found = requests(hub)
        assert found.pop("token", 0) <= 1  # tokens outlive handles, and may expire at any time
        # Its name is unknown, so the moves are listed, and one of them is the version.
        assert found == {"resolve": 1, "tree": 1, "reconstruction": 1, "xorb_read": 1}
        assert received < 400_000 < 600_000 < reader.stats().pack_bytes


def test_processes_share_the_disk_cache(hub: LocalHub, prefix: str, tmp_path: Path) -> None:
    def cached() -> ObjectStore:
        return CachedStore(bucket(hub, prefix), tmp_path, 1 << 30, prefix)

    states = history(2)
    with casweights.open(bucket(hub, prefix), create=True, config=CONFIG) as repo:
        first, second = (repo.commit(state) for state in states)
    with casweights.open(cached()) as reader:
        assert_same_state(reader.load(first), states[0])
    hub.reset_counters()
    with casweights.open(cached()) as reader:
        assert_same_state(reader.load(first), states[0])
        assert hub.counters().requests["xorb_read"] == 0
        assert_same_state(reader.load(second), states[1])
    whole = sum(tensor.nbytes for tensor in states[0].values())
    assert hub.counters().bytes_out < whole / 10


def test_an_interrupted_commit_is_not_uploaded_again(
    hub: LocalHub, prefix: str, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    [state] = history(1)
    with monkeypatch.context() as patch:
        patch.setattr(RefLog, "_outcome", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            repo.commit(state)
    hub.reset_counters()
    with casweights.open(bucket(hub, prefix)) as fresh:
        version = fresh.commit(state)
        assert hub.counters().bytes_in_by_route["xorb_upload"] < 10_000  # a bare version
        assert_same_state(fresh.load(version), state)


def test_between_buckets_no_bytes_move(hub: LocalHub, prefix: str, repo: Repository) -> None:
    states = history(3)
    versions = [repo.commit(state) for state in states]
    with casweights.open(bucket(hub, f"{prefix}/copy"), create=True, config=CONFIG) as target:
        hub.reset_counters()
        stats = repo.push(target)
        moved = hub.counters()
        assert stats.snapshots == len(states)
        assert moved.bytes_in_by_route["xorb_upload"] < 10_000  # snapshots and ref
        assert moved.bytes_out < 800_000  # the ends of the versions' objects
        for version, state in zip(versions, states, strict=True):
            assert_same_state(target.load(version.id), state)
        assert target.verify().problems == ()


def test_objects_of_another_store_are_read_through_its_wrappers(hub: LocalHub, prefix: str) -> None:
    """The wrappers contain the retries and the cache."""
    source = CountingStore(MemoryStore())
    source.put("packs/a", [b"bytes"])
    source.reset()
    bucket(hub, prefix).copy_from(source, ["packs/a"])
    assert source.reads == [("packs/a", 5)]


def test_versions_are_pushed_out_of_a_bucket_and_back(
    hub: LocalHub, prefix: str, repo: Repository
) -> None:
    *states, last = history(4)
    versions = [repo.commit(state) for state in states]
    with casweights.open(MemoryStore(), create=True, config=CONFIG) as local:
        repo.push(local)
        more = local.commit(last)
        assert local.push(repo).snapshots == 1
        assert [v.id for v in repo.log("main")] == [more.id, *(v.id for v in versions[::-1])]
    assert repo.verify().problems == ()


def test_branches_and_tags_are_kept_in_a_repository(hub: LocalHub, prefix: str) -> None:
    config = StoreConfig(chunk_size=CHUNK, refs=f"datasets/me/refs-{prefix}")
    with casweights.open(bucket(hub, prefix), create=True, config=config) as repo:
        info = repo.info()
        assert info.exclusive
        assert info.refs == f"hf://{config.refs}"
        versions = [repo.commit({"n": n}) for n in range(3)]
        repo.tag("v1", versions[0])
        with casweights.open(bucket(hub, prefix)) as again:
            assert again.config.refs == config.refs
            assert again.branches() == {"main": versions[-1].id}
            assert again.tags() == {"v1": versions[0].id}
        assert repo.verify().problems == ()


def test_only_buckets_can_have_their_refs_in_a_repository() -> None:
    with pytest.raises(UnsupportedError, match="datasets/me/refs"):
        casweights.open(MemoryStore(), create=True, config=StoreConfig(refs="datasets/me/refs"))


def test_a_bucket_is_not_exclusive_and_keeps_its_own_refs(repo: Repository) -> None:
    info = repo.info()
    assert not info.exclusive
    assert info.refs == info.url == repo.url
    assert info.url.startswith("hf://buckets/me/weights/store")


def test_opening_a_bucket_without_a_store_raises_not_found(hub: LocalHub, prefix: str) -> None:
    with pytest.raises(NotFoundError, match="there is no casweights store"):
        casweights.open(bucket(hub, prefix))
    with pytest.raises(NotFoundError, match="no bucket me/nothing"):
        casweights.open(RetryStore(HubStore("me/nothing", endpoint=hub.url)))
    with casweights.open(HubStore("me/new", endpoint=hub.url), create=True) as repo:
        assert repo.url == "hf://buckets/me/new"
