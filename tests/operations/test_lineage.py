"""Lineage: which versions a version was made from, and that nothing but people relies on it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.errors import NotFoundError
from casweights.format import names
from casweights.format.lineage import Origin
from casweights.format.manifest import EncodedSnapshot
from casweights.format.snapshot import StoredSnapshot, encode_snapshot
from casweights.ids import SnapshotId
from casweights.operations.archiving import archive
from casweights.stores.memory import MemoryStore
from casweights.sync.publisher import Publisher
from casweights.testing.states import assert_same_state
from tests.histories import step, weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights import Repository

State = dict[str, torch.Tensor]
TIME = datetime(2026, 8, 1, tzinfo=UTC)
NOBODY = SnapshotId(b"n" * 32)


@pytest.fixture
def repo() -> Iterator[Repository]:
    with casweights.open(MemoryStore(), create=True, config=StoreConfig(chunk_size=64 * KiB)) as r:
        yield r


def model(seed: int, names: str = "abc", chunks: int = 1) -> State:
    return {name: weights(chunks, seed=seed * 100 + n) for n, name in enumerate(names)}


def tuned(state: State, seed: int) -> State:
    return {name: step(tensor, 0.02, seed + n) for n, (name, tensor) in enumerate(state.items())}


def shares(repo: Repository, ref: str) -> dict[SnapshotId, int]:
    return {one.snapshot: one.nbytes for one in repo.lineage(ref)}


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def written(repo: Repository, state: State, base: str | None = None) -> int:
    """Return the bytes that a commit adds to the packs."""
    before = repo.stats().pack_bytes
    version = repo.commit(state, base=base)
    assert_same_state(repo.load(version.id), state)
    return repo.stats().pack_bytes - before


def test_steps_from_their_parent_list_nothing(repo: Repository) -> None:
    state = model(1)
    repo.commit(state)
    for seed in range(3):
        state = tuned(state, 50 + seed)
        repo.commit(state)
    repo.commit(tuned(state, 60), branch="fork", parent="main")
    assert [repo.lineage(ref) for ref in ("main", "main~1", "main~3", "fork")] == [()] * 4


def test_a_publisher_lists_nothing_and_counts_nothing(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of training pay nothing for lineage."""
    counted: list[object] = []
    monkeypatch.setattr(
        "casweights.operations.lineage.Lineage.count", lambda *args: counted.append(args)
    )
    state = model(1)
    with Publisher(repo, branch="rl") as publisher:
        for seed in range(3):
            publisher.publish(state)
            state = tuned(state, 50 + seed)
    assert repo.snapshot("rl").number == 3
    assert (counted, repo.lineage("rl"), repo.lineage("rl~1")) == ([], (), ())


def test_a_found_relative_is_listed_with_its_share(repo: Repository) -> None:
    old = model(1)
    base = repo.commit(old).id
    repo.commit(model(2), branch="other")
    new = {**tuned({name: old[name] for name in "ab"}, 50), "c": old["c"], "more": weights(1, 7)}
    repo.commit(new, branch="tuned")
    [found] = repo.lineage("tuned")
    assert (found.snapshot, found.nbytes) == (base, nbytes(*old.values()))
    assert found.share == found.nbytes / repo.snapshot("tuned").size
    assert (found.is_parent, found.state) == (False, "present")


def test_a_parent_and_a_found_base_are_told_apart(repo: Repository) -> None:
    """The parent lacks a tensor, which another version has under another name."""
    old, other = model(1), model(2, "xyz", chunks=5)
    parent = repo.commit(old).id
    donor = repo.commit(other, branch="other").id
    repo.commit({**tuned(old, 50), "new": step(other["z"], 0.01, 3)})
    assert shares(repo, "main") == {parent: nbytes(*old.values()), donor: nbytes(other["z"])}
    assert [one.is_parent for one in repo.lineage("main")] == [False, True]


def test_a_version_is_stored_as_differences_from_its_base(repo: Repository) -> None:
    """The base does not become a parent, and costs what a parent costs."""
    repo.commit(model(1))
    base = repo.commit(model(2), branch="other").id
    new = tuned(model(2), 50)
    cost = written(repo, new, base="other")
    assert repo.snapshot("main").parents == (repo.resolve("main~1"),)
    assert shares(repo, "main") == {base: nbytes(*new.values())}
    assert cost < nbytes(*new.values()) / 10
    with casweights.open(MemoryStore(), create=True, config=repo.config) as alone:
        alone.commit(model(2))
        assert cost <= 1.02 * written(alone, new)


def test_what_the_base_lacks_comes_from_the_parent_and_from_relatives(repo: Repository) -> None:
    base = repo.commit(model(1), branch="base").id
    found = model(3, "xyz", chunks=5)
    donor = repo.commit(found, branch="donor").id
    old = {"a": weights(1, 91), "p": weights(2, 92)}
    parent = repo.commit(old).id
    new = {**tuned(model(1), 50), "p": step(old["p"], 0.01, 4)}
    new["moved"] = step(found["z"], 0.01, 5)
    repo.commit(new, base="base")
    assert shares(repo, "main") == {
        base: nbytes(*model(1).values()),
        parent: nbytes(old["p"]),
        donor: nbytes(new["moved"]),
    }
    assert [one.is_parent for one in repo.lineage("main")] == [False, False, True]


def test_a_version_that_is_in_the_store_is_listed_as_its_base(repo: Repository) -> None:
    base = repo.commit(model(1)).id
    repo.commit(model(1), branch="again", base="main", message="again")
    assert shares(repo, "again") == {base: nbytes(*model(1).values())}


def test_a_version_that_is_made_again_from_itself_does_not_list_itself(repo: Repository) -> None:
    """A repetition with the same time finds the version that the first attempt wrote."""
    first = repo.commit(model(1, chunks=5), time=TIME).id
    archive(repo.database, list(repo.database.store.list(names.SNAPSHOTS)))
    assert repo.commit(model(1, chunks=5), branch="again", base="main", time=TIME).id == first
    with casweights.open(repo.database.store) as fresh:
        assert list(fresh.database.store.list(names.SNAPSHOTS))  # written once more
        assert fresh.lineage("again") == ()
        assert fresh.verify().problems == ()


def test_a_base_that_has_nothing_in_common_is_not_listed(repo: Repository) -> None:
    repo.commit({"other": weights(1, 5)}, branch="other")
    for state in (model(1), tuned(model(1), 50)):  # without a parent, and with one that serves
        repo.commit(state, base="other")
        assert repo.lineage("main") == ()


def test_the_parent_may_be_named_as_the_base(repo: Repository) -> None:
    repo.commit(model(1))
    repo.commit(tuned(model(1), 50), base="main")
    assert repo.lineage("main") == ()


@pytest.mark.parametrize("base", ["nothing", str(NOBODY), NOBODY])
def test_a_base_that_does_not_exist_is_an_error(repo: Repository, base: str | SnapshotId) -> None:
    with pytest.raises(NotFoundError):
        repo.commit(model(1), base=base)
    assert repo.branches() == {}


def test_the_id_does_not_depend_on_the_base(repo: Repository) -> None:
    repo.commit(model(1), branch="base")
    with_base = repo.commit(tuned(model(1), 50), base="base", time=TIME).id
    with casweights.open(MemoryStore(), create=True, config=repo.config) as alone:
        assert alone.commit(tuned(model(1), 50), time=TIME).id == with_base
        assert (alone.lineage("main"), len(repo.lineage("main"))) == ((), 1)


@pytest.fixture
def based(repo: Repository) -> dict[SnapshotId, int]:
    """A store whose branch main is made from another one; return the lineage of main."""
    repo.commit(model(1), branch="base", time=TIME)
    repo.commit(model(2), time=TIME)
    repo.commit(tuned(model(1), 50), base="base", time=TIME)
    found = shares(repo, "main")
    assert found
    return found


def check(repo: Repository, expected: dict[SnapshotId, int]) -> None:
    """Check lineage and content of main in a handle that remembers nothing."""
    with casweights.open(repo.database.store) as fresh:
        assert shares(fresh, "main") == expected
        assert_same_state(fresh.load("main"), tuned(model(1), 50))
        assert fresh.verify().problems == ()


def test_archives_keep_it(repo: Repository, based: dict[SnapshotId, int]) -> None:
    version = repo.resolve("main")
    own = names.snapshot_name(version)
    archive(repo.database, [i for i in repo.database.store.list(names.SNAPSHOTS) if i.name == own])
    assert own not in {info.name for info in repo.database.store.list(names.SNAPSHOTS)}
    check(repo, based)


@pytest.mark.parametrize("history", [True, False])
def test_a_push_keeps_it(repo: Repository, based: dict[SnapshotId, int], history: bool) -> None:
    """Without the history, the target lacks the base, and says so."""
    with casweights.open(MemoryStore(), create=True, config=repo.config) as target:
        repo.push(target, ["main"], history=history)
        check(target, based)
        assert [one.state for one in target.lineage("main")] == ["missing"]
        assert len(list(target.graph())) == (2 if history else 1)
        repo.push(target)
        assert [one.state for one in target.lineage("main")] == ["present"]


def test_a_collection_keeps_it_when_the_base_goes(repo: Repository) -> None:
    with casweights.open(MemoryStore(), create=True, config=repo.config) as other:
        base = other.commit(model(1), time=TIME).id
        other.push(repo, [str(base)])  # without a name
    repo.commit(model(2), time=TIME)
    repo.commit(tuned(model(1), 50), base=base, time=TIME)
    based = shares(repo, "main")
    assert list(based) == [base]
    for info in list(repo.database.store.list(names.SNAPSHOTS)):
        archive(repo.database, [info])  # so that others do not need the object of the base
    repo.gc(apply=True, grace=timedelta(0), confirm="memory://")
    check(repo, based)
    with casweights.open(repo.database.store) as fresh:
        assert [one.state for one in fresh.lineage("main")] == ["missing"]


def test_a_base_that_has_expired_is_shown_as_such(repo: Repository) -> None:
    base = repo.commit(model(1), branch="base", time=TIME).id
    repo.commit(tuned(model(1), 30), branch="base", time=TIME)
    repo.commit(tuned(model(1), 50), base="base~1")
    assert list(shares(repo, "main")) == [base]
    repo.expire([casweights.Keep(last=1)], apply=True)
    with casweights.open(repo.database.store) as fresh:
        assert [one.state for one in fresh.lineage("main")] == ["expired"]


def test_a_repack_renews_it(repo: Repository) -> None:
    """It builds on parents, and finds relatives that came later."""
    base = repo.commit(model(1), branch="base", time=TIME).id
    repo.commit(model(1), message="equal", time=TIME)
    repo.commit(tuned(model(1), 40), base="base", time=TIME + timedelta(1))
    assert shares(repo, "main") == {base: nbytes(*model(1).values())}  # though its parent is equal
    late = repo.commit(model(4), branch="late", time=TIME + timedelta(3)).id
    with casweights.open(MemoryStore(), create=True, config=repo.config) as other:
        early = other.commit(tuned(model(4), 41), branch="early", time=TIME + timedelta(2)).id
        other.push(repo)
    assert repo.lineage("early") == repo.lineage("late") == ()
    repo.repack(grace=timedelta(0))
    with casweights.open(repo.database.store) as fresh:
        assert shares(fresh, "late") == {early: nbytes(*model(4).values())}
        assert fresh.lineage("main") == fresh.lineage("early") == ()
        assert fresh.verify().problems == ()
        assert_same_state(fresh.load("main"), tuned(model(1), 40))
        assert_same_state(fresh.load(late), model(4))
        before = {info.name for info in fresh.database.store.list("")}
        fresh.repack(grace=timedelta(0))
        assert {info.name for info in fresh.database.store.list("")} == before


def forge(repo: Repository, ref: str, lineage: Sequence[Origin]) -> None:
    """Give a version another lineage, in the object that the store has of it."""
    stored = repo.database.snapshots.load_stored(repo.resolve(ref))
    name, store = names.snapshot_name(stored.snapshot.id), repo.database.store
    data = bytes(store.get(name))
    payloads = [data[f.offset : f.offset + f.size] for f in stored.frames]
    forged = StoredSnapshot(
        stored.snapshot, stored.encoded_manifest, stored.table, stored.frames, lineage
    )
    store.delete_all([name])
    store.put(name, encode_snapshot(forged, payloads))


def outcome(lineage: bool) -> list[object]:
    """Return what a store looks like after all that reads and maintains versions has run."""
    store = MemoryStore()
    with casweights.open(store, create=True, config=StoreConfig(chunk_size=64 * KiB)) as r:
        for seed, branch in enumerate(["a", "b", "c", "main"]):
            r.commit(model(seed), branch=branch, time=TIME)
        r.commit(tuned(model(0), 50), base="a", time=TIME)
        ids = [r.resolve(name) for name in ("a", "b", "main")]
        r.delete_branch("c")
        if lineage:
            forge(r, "a", [Origin(ids[2], 9), Origin(ids[1], 8)])
            forge(r, "b", [Origin(ids[0], 9)])
            forge(r, "main", [Origin(ids[1], r.snapshot("main").size)])
    with casweights.open(store) as fresh:
        found: list[object] = [fresh.verify().problems, fresh.verify(quick=True).problems]
        fresh.commit(tuned(model(1), 70), branch="d", time=TIME)
        fresh.gc(apply=True, grace=timedelta(0), confirm="memory://")
        found += [fresh.branches(), sorted(info.name for info in store_names(fresh))]
        fresh.repack(grace=timedelta(0))
        fresh.maintain(grace=timedelta(0))
        found += [fresh.verify().problems, sorted(fresh.database.snapshots.ids())]
        for branch in fresh.branches():
            state = fresh.load(branch)
            found.append({name: tensor.tolist() for name, tensor in state.items()})
        return found


def store_names(repo: Repository) -> list[casweights.stores.base.ObjectInfo]:
    return [i for kind in (names.PACKS, names.SNAPSHOTS) for i in repo.database.store.list(kind)]


def test_nothing_relies_on_lineage() -> None:
    """Forged lineage with a circle and absurd shares changes no result of any verb."""
    assert outcome(lineage=True) == outcome(lineage=False)


def test_a_graph_passes_each_version_once(repo: Repository) -> None:
    """Forged lineage leads in circles, and a merge has two parents."""
    first = repo.commit(model(1), time=TIME).id
    left = repo.commit(model(2), time=TIME + timedelta(1)).id
    right = repo.commit(model(3), branch="right", parent=first, time=TIME + timedelta(2)).id
    manifest = replace(repo.snapshot("main"), parents=(left, right), number=3)
    merge, encoded = EncodedSnapshot.of(replace(manifest, time=TIME))  # by a clock that is behind
    repo.database.snapshots.save(*repo.database.snapshots.encode(merge, encoded))
    repo.branch("merge", merge)
    forge(repo, "main", [Origin(right, 2), Origin(NOBODY, 1)])
    forge(repo, "right", [Origin(left, 2), Origin(first, 1)])
    with casweights.open(repo.database.store) as fresh:
        rows = {row.snapshot.id: row for row in fresh.graph()}
        order = [row.snapshot.id for row in fresh.graph(["merge"])]
    assert {one: row.parents for one, row in rows.items()} == {
        merge.id: (left, right),
        left: (first,),
        right: (first,),
        first: (),
    }
    states = {one.snapshot: (one.is_parent, one.state) for one in rows[left].lineage}
    assert states == {right: (False, "present"), NOBODY: (False, "missing")}
    assert [one.is_parent for one in rows[right].lineage] == [False, True]
    assert (order[0], order[-1], len(order)) == (merge.id, first, 4)


def test_a_graph_leads_past_expired_versions(repo: Repository) -> None:
    moments = [TIME + timedelta(number) for number in range(5)]
    versions = [repo.commit(model(n), time=moment).id for n, moment in enumerate(moments)]
    repo.tag("first", versions[0])
    fork = repo.commit(model(7), branch="fork", parent=versions[2], time=TIME).id
    repo.expire([casweights.Keep(last=1)], apply=True)
    repo.gc(apply=True, grace=timedelta(0), confirm="memory://")
    with casweights.open(repo.database.store) as fresh:
        rows = {row.snapshot.id: row for row in fresh.graph()}
    assert rows.keys() == {versions[0], versions[4], fork}
    assert [row.id for row in rows[versions[4]].expired] == versions[3:0:-1]
    assert [row.id for row in rows[fork].expired] == versions[2:0:-1]
    assert rows[versions[4]].parents == rows[fork].parents == (versions[0],)
