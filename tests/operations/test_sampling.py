"""Which versions have a signature, what it says, and what it costs to write."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import Publisher
from casweights.config import StoreConfig
from casweights.format import names
from casweights.operations.sampling import is_sampled, signature_of
from casweights.stores.hub.store import HubStore
from casweights.testing.hub import LocalHub
from tests.histories import step, weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.ids import SnapshotId
    from casweights.testing import CountingStore


def stored(repo: Repository) -> set[SnapshotId]:
    return repo.database.signatures.versions()


def assert_signed(repo: Repository, version: SnapshotId) -> None:
    """Check that the signature in the store is the one that the version's chunks have."""
    db = repo.database
    made = signature_of(db, db.snapshots.load(version, with_locations=True))
    assert made is not None
    assert db.signatures.entries([version]) == [made.entry(version)]


def test_the_first_version_of_each_branch_has_a_signature(repo: Repository) -> None:
    first = repo.commit({"w": weights(3), "n": torch.ones(9)})
    repo.commit({"w": step(weights(3), 0.1, 1)})
    assert stored(repo) == {first.id}
    fork = repo.commit({"w": step(weights(3), 0.1, 2)}, branch="fork", parent=first.id)
    assert stored(repo) == {first.id, fork.id}
    for version in (first, fork):
        assert_signed(repo, version.id)


def test_every_64th_version_has_a_signature(repo: Repository) -> None:
    versions = [repo.commit({"w": torch.full((99,), float(n))}) for n in range(66)]
    assert stored(repo) == {versions[0].id, versions[63].id}
    assert_signed(repo, versions[63].id)
    assert [n for n in range(1, 200) if is_sampled(n, begins=False)] == [1, 64, 128, 192]


@pytest.mark.parametrize("known", [False, True])
def test_chunks_that_the_store_contains_are_sampled(repo: Repository, known: bool) -> None:
    """Those that are hashed in place, too: the second half is hashed as the first one is known."""
    state = {f"t{n}": weights(2, seed=n) for n in range(8)}
    if known:
        repo.commit(state, branch="other")
    assert_signed(repo, repo.commit(state).id)


def test_directories_and_files_of_bytes_have_signatures(repo: Repository, tmp_path: Path) -> None:
    (tmp_path / "odd.bin").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "empty").write_bytes(b"")
    version = repo.commit(tmp_path)
    assert_signed(repo, version.id)
    (tmp_path / "odd.bin").unlink()
    empty = repo.commit(tmp_path, branch="empty")
    assert stored(repo) == {version.id}
    assert empty.id != version.id


def test_a_publisher_samples_the_chunks_that_do_not_change(repo: Repository) -> None:
    state = {"w": weights(3), "frozen": weights(2, seed=1), "small": torch.ones(5)}
    with Publisher(repo) as publisher:
        for n in range(64):
            state["w"][n] += 1
            publisher.publish(state)
    versions = list(repo.log())
    assert stored(repo) == {versions[0].id, versions[63].id}
    for version in (versions[0], versions[63]):
        assert_signed(repo, version.id)


def test_a_signature_goes_with_its_version_and_adds_no_request(local_hub: LocalHub) -> None:
    requests = []
    for kept in (True, False):
        store = HubStore("me/weights", f"kept{kept}", endpoint=local_hub.url)
        with casweights.open(store, create=True, workers=1) as repo:
            repo.database.signatures.keep(kept)
            local_hub.reset_counters()
            repo.commit({"w": weights(1)})
            requests.append(local_hub.counters().requests)
            assert bool(stored(repo)) == kept
    assert requests[0] == requests[1]
    assert requests[0]["batch"] == 1


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


def test_where_refs_are_in_a_repository_it_goes_with_the_snapshot(local_hub: LocalHub) -> None:
    store = HubStore("me/weights", "run", endpoint=local_hub.url)
    config = StoreConfig(refs="datasets/me/refs")
    with casweights.open(store, create=True, config=config) as repo:
        repo.database.signatures.are_kept()
        local_hub.reset_counters()
        version = repo.commit({"w": weights(1)})
        assert local_hub.counters().requests["batch"] == 1
        assert_signed(repo, version.id)


def test_a_push_sends_the_signatures_of_what_it_sends(repo: Repository) -> None:
    first = repo.commit({"w": weights(3)})
    repo.commit({"w": weights(3, seed=1)}, branch="other")
    with casweights.open("memory://", create=True, config=repo.config) as target:
        repo.push(target, ["main"])
        assert stored(target) == {first.id}
        assert_signed(target, first.id)
        repo.push(target)
        assert len(stored(target)) == 2
    with casweights.open("memory://", create=True, config=repo.config) as without:
        without.database.signatures.keep(wanted=False)
        repo.push(without)
        assert stored(without) == set()


def test_a_push_sends_none_of_many(repo: Repository) -> None:
    """And takes them from the object that holds those of several versions."""
    versions = [repo.commit({"n": torch.tensor(n)}, branch=f"b{n}").id for n in range(66)]
    repo.database.signatures.merge()
    with casweights.open("memory://", create=True, config=repo.config) as target:
        repo.push(target, ["b3", "b9"])
        assert stored(target) == {versions[3], versions[9]}
        objects = list(target.database.store.list(names.SIGNATURES))
        assert len(objects) == 2


def test_a_damaged_signature_is_not_sent_and_stops_nothing(
    repo: Repository, objects: CountingStore
) -> None:
    version = repo.commit({"w": weights(3)})
    name = f"{names.SIGNATURES}{version.id}"
    content = objects.get(name)
    objects.delete(name)
    objects.put(name, [content[:-1], b"?"])
    with casweights.open("memory://", create=True, config=repo.config) as target:
        repo.push(target)
        assert target.resolve("main") == version.id
        assert stored(target) == set()


def test_maintenance_makes_the_signatures_that_are_missing(
    repo: Repository, objects: CountingStore
) -> None:
    first = repo.commit({"w": weights(3)})
    second = repo.commit({"w": step(weights(3), 0.1, 1)})
    repo.commit({"w": step(weights(3), 0.1, 2)})
    repo.tag("v2", second.id)
    for info in list(objects.list(names.SIGNATURES)):
        objects.delete(info.name)
    repo.maintain()
    assert stored(repo) == {first.id, second.id}
    for version in (first, second):
        assert_signed(repo, version.id)


def test_a_collection_drops_the_signatures_of_what_it_removes(tmp_path: Path) -> None:
    with casweights.open(tmp_path / "store", create=True) as repo:
        kept = repo.commit({"w": weights(3)})
        repo.commit({"w": weights(3, seed=1)}, branch="other")
        repo.delete_branch("other")
        assert len(stored(repo)) == 2
        repo.gc(grace=timedelta(0), confirm=repo.database.store.url, apply=True)
        assert stored(repo) == {kept.id}


def test_verify_names_damaged_signatures_and_nothing_else(
    repo: Repository, objects: CountingStore
) -> None:
    version = repo.commit({"w": weights(3)})
    assert repo.verify().problems == ()
    name = f"{names.SIGNATURES}{version.id}"
    objects.put(f"{names.SIGNATURES}9-{'0' * 64}", [objects.get(name)])
    [problem] = repo.verify().problems
    assert f"{names.SIGNATURES}9-" in str(problem)


def test_a_store_that_keeps_none_gets_none(repo: Repository, objects: CountingStore) -> None:
    repo.commit({"w": weights(1)})
    repo.maintain(signatures=False)
    repo.commit({"w": weights(2)}, branch="other")
    with casweights.open(objects) as fresh:
        fresh.commit({"w": weights(3)}, branch="third")
        fresh.maintain()
        assert stored(fresh) == set()
        fresh.maintain(signatures=True)
        assert len(stored(fresh)) == 3
    repo.maintain()
    repo.commit({"w": weights(1, seed=4)}, branch="fourth")
    assert len(stored(repo)) == 4


def test_false_signatures_stop_no_verb(repo: Repository, objects: CountingStore) -> None:
    """Rubbish, an empty object, one of another version, and very many that claim to be large."""
    state = {f"w{n}": weights(1, seed=n).reshape(-1, 64) for n in range(20)}
    first = repo.commit(state)
    content = objects.get(f"{names.SIGNATURES}{first.id}")
    objects.delete(f"{names.SIGNATURES}{first.id}")
    objects.put(f"{names.SIGNATURES}{first.id}", [b"rubbish"])
    for n in range(100):
        objects.put(f"{names.SIGNATURES}{n:064x}", [content if n % 2 else b""])
        objects.put(f"{names.SIGNATURES}9999-{n:064x}", [content])
    with casweights.open(objects) as other:
        second = other.commit(state | {"w0": torch.zeros(9)}, branch="second")
        other.tag("v1", second.id)
        other.maintain()
        other.repack()
        with casweights.open("memory://", create=True, config=repo.config) as target:
            other.push(target)
            assert stored(target) == {first.id, second.id}
        assert stored(other) == {first.id, second.id}  # repaired, too
        assert other.gc().applied is False
        db = other.database
        own = signature_of(db, db.snapshots.load(first.id, with_locations=True))
        assert own is not None
        assert {near.snapshot for near in db.signatures.nearest(own)} == {first.id, second.id}
