"""Versions go from store to store: only what is missing moves, and every ID stays."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.errors import (
    CasweightsError,
    ConflictError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StoreError,
)
from casweights.events import Reporter, Stage
from casweights.format import names
from casweights.format.manifest import EncodedSnapshot
from casweights.operations.push import push
from casweights.operations.transfer import transfer
from casweights.results import TransferStats
from casweights.stores.base import Capabilities
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.faults import Fault, FaultyStore, flip_bit
from casweights.testing.states import assert_same_state
from tests import forged_chains
from tests.histories import CHUNK, State, history, step, weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.database import Database
    from casweights.stores.base import ObjectStore

CONFIG = StoreConfig(chunk_size=CHUNK)

Versions = dict["SnapshotId", State]


def create(store: ObjectStore, config: StoreConfig = CONFIG) -> None:
    casweights.open(store, create=True, config=config).close()


def push_everything(here: Database, there: Database) -> TransferStats:
    return push(here, there, None, unnamed=True)


def send(
    source: ObjectStore,
    target: ObjectStore,
    move: Callable[[Database, Database], TransferStats] = push_everything,
    reporter: Reporter | None = None,
) -> TransferStats:
    """Open both stores anew, and bring versions from one to the other."""
    with casweights.open(source) as here, casweights.open(target, reporter=reporter) as there:
        return move(here._db, there._db)


def push_all(source: ObjectStore, target: ObjectStore, *refs: str, force: bool = False) -> None:
    send(source, target, lambda here, there: push(here, there, refs or None, force=force))


def names_of(store: ObjectStore, prefix: str = "") -> set[str]:
    return {info.name for info in store.list(prefix)}


def check(store: ObjectStore, versions: Versions) -> None:
    """The store is sound and has exactly these versions, bit for bit."""
    with casweights.open(store) as repo:
        assert repo.verify().problems == ()
    for version, state in versions.items():
        with casweights.open(store) as repo:  # which has learnt nothing from the others
            assert repo.snapshot(version).id == version
            assert_same_state(repo.load(version), state)
    assert names_of(store, names.SNAPSHOTS) == {names.snapshot_name(v) for v in versions}


def written(store: CountingStore, prefix: str = "") -> list[str]:
    return [name for name, _ in store.writes if name.startswith(prefix)]


def commit(store: ObjectStore, state: State, **options: str) -> SnapshotId:
    with casweights.open(store) as repo:
        return repo.commit(state, **options).id  # type: ignore[arg-type]


@pytest.fixture
def versions(repo: Repository) -> Versions:
    """Two branches of differences, a third one that resembles them, and a tag."""
    states = list(history(5, 0.01, chunks=3))
    found = {repo.commit(state).id: state for state in states}
    fork = {"w": step(states[2]["w"], 0.02, 70)}
    found[repo.commit(fork, branch="fork", parent="main~2").id] = fork
    alike = {"w": step(states[1]["w"], 0.02, 71), "more": weights(1, seed=72)}
    found[repo.commit(alike, branch="alike").id] = alike
    repo.tag("v1", "main~3")
    return found


@pytest.fixture(params=["memory", "local"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> CountingStore:
    """An empty store that counts."""
    kind = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "target")
    store = CountingStore(kind)
    create(store)
    store.reset()
    return store


def test_everything(objects: CountingStore, target: CountingStore, versions: Versions) -> None:
    stats = send(objects, target)
    check(target, versions)
    assert names_of(target, names.PACKS) == names_of(objects, names.PACKS)
    with casweights.open(objects) as here, casweights.open(target) as there:
        assert there.branches() == here.branches()
        assert there.tags() == here.tags()
        refs = {f"heads/{name}": tip for name, tip in here.branches().items()}
        assert stats.refs == {**refs, "tags/v1": here.tags()["v1"]}
    assert stats.snapshots == len(versions)
    assert stats.packs == len(names_of(objects, names.PACKS))
    moved = [nbytes for name, nbytes in target.writes if not name.startswith("refs/")]
    assert stats.nbytes == sum(moved)


def test_objects_are_the_same(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """Where the source was not rewritten, even the pack tables are what they were."""
    send(objects, target)
    for name in names_of(objects, names.PACKS) | names_of(objects, names.SNAPSHOTS):
        assert target.get(name) == objects.get(name)


def test_nothing_moves_twice(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    for move in (push_everything, lambda here, there: push(here, there, None)):
        objects.reset()
        target.reset()
        stats = send(objects, target, move)
        assert stats == TransferStats(snapshots=0, packs=0, nbytes=0, refs={}, tips=stats.tips)
        assert target.writes == []
        assert objects.read_bytes(names.PACKS) + target.read_bytes(names.PACKS) == 0


def test_one_version_more(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    fresh = {"w": step(list(versions.values())[4]["w"], 0.01, 80)}
    version = commit(objects, fresh)
    target.reset()
    push_all(objects, target, "main")
    assert [name.split("/")[0] for name in written(target)] == ["packs", "snapshots", "refs"]
    assert target.read_bytes(names.PACKS) == 0
    check(target, versions | {version: fresh})


@pytest.mark.parametrize("compression", ["auto", "fast"])
def test_one_version_more_after_the_target_was_repacked(
    objects: CountingStore, target: CountingStore, versions: Versions, compression: str
) -> None:
    """By their names none of the source's packs are there; their chunks are."""
    send(objects, target)
    with casweights.open(target) as repo:
        repo.repack(compression=compression)  # type: ignore[arg-type]
    assert not names_of(target, names.PACKS) & names_of(objects, names.PACKS)
    state = list(versions.values())[4]["w"]
    for seed, branch in enumerate(["new", "main"]):
        fresh = {"w": step(state, 0.01, 80 + seed)}
        versions[commit(objects, fresh, branch=branch)] = fresh
        target.reset()
        stats = send(objects, target)
        assert stats.snapshots == stats.packs == len(written(target, names.PACKS)) == 1
    check(target, versions)


def test_after_the_source_was_repacked(
    repo: Repository,
    objects: CountingStore,
    target: CountingStore,
    versions: Versions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pack tables of its snapshots are out of date; those of the target are not."""
    monkeypatch.setattr("casweights.database.writer.PACK_TARGET", 100_000)
    fresh = {"w": step(list(versions.values())[4]["w"], 0.01, 80)}
    version = repo.commit(fresh, message="to be pushed later").id
    repo.branch("late", version)
    repo.branch("main", "main~1", force=True)
    repo.repack(compression="small")
    push_all(objects, target, "main")
    push_all(objects, target)
    check(target, versions | {version: fresh})
    for found in versions:
        check_table(target, found)


def check_table(store: ObjectStore, version: SnapshotId) -> None:
    """A version's pack table leads to all of it: there is no need to look through all packs."""
    watched = FaultyStore(store)
    with casweights.open(watched) as repo:
        repo.load(version)
    assert ("list", names.PACKS) not in watched.calls


class RemoteStore(CountingStore):
    """A store that says that it is far away."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.capabilities = Capabilities(
            exclusive_create=True, listing_lags=True, cheap_reads=False
        )


def test_little_is_read_from_afar(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """What a pull does not need, it does not look at."""
    send(objects, target)
    before = names_of(objects, names.PACKS)
    fresh = {"w": step(list(versions.values())[4]["w"], 0.01, 80)}
    version = commit(objects, fresh)
    source = RemoteStore(objects)
    push_all(source, target)
    assert not before & {name for name, _ in source.reads}
    old_snapshots = {names.snapshot_name(found) for found in versions}
    assert not old_snapshots & {name for name, _ in source.reads}
    check_table(target, version)


def test_the_smaller_way(objects: CountingStore) -> None:
    """A difference goes where its base is, whatever is cheapest without."""
    forged_chains.create(objects)
    a, b = forged_chains.A, forged_chains.B
    links = [forged_chains.whole(a), forged_chains.difference(b, a), forged_chains.whole(b)]
    packs = [forged_chains.add_pack(objects, [link]) for link in links]
    versions = [forged_chains.add_version(objects, raw, [packs[n]]) for n, raw in enumerate([a, b])]
    with casweights.open(objects) as repo:
        repo._db.index.load()
        parent = repo._db.snapshots.load(versions[1])
        child, encoded = EncodedSnapshot.of(replace(parent, parents=(versions[0],)))
        repo._db.snapshots.save(child, encoded)
    target = MemoryStore()
    create(target)
    send(objects, target, lambda here, there: transfer(here, there, [child.id]))
    assert names_of(target, names.PACKS) == {names.pack_name(pack) for pack in packs[:2]}


def test_ways_to_say_which(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    with casweights.open(objects) as repo:
        repo.tag("fork", "fork")  # a branch, too, that agrees
        tips = repo.branches() | repo.tags()
    push_all(objects, target, "v1")
    push_all(objects, target, "heads/alike")
    push_all(objects, target, "fork")
    with casweights.open(target) as there:
        assert there.tags() == {"v1": tips["v1"], "fork": tips["fork"]}
        assert there.branches() == {"alike": tips["alike"], "fork": tips["fork"]}
        assert there.verify().snapshots == 5
    commit(objects, next(iter(versions.values())), branch="fork")
    with pytest.raises(NotFoundError, match="heads/fork") as caught:
        push_all(objects, target, "fork")
    assert caught.value.code is ErrorCode.AMBIGUOUS
    push_all(objects, target, "heads/fork", "tags/fork")
    for name in ("nobody", "tags/main", "heads/v1"):
        with pytest.raises(NotFoundError, match=name):
            push_all(objects, target, name)


def test_only_what_a_branch_needs(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    push_all(objects, target, "tags/v1")
    first_two = dict(list(versions.items())[:2])
    check(target, first_two)
    assert len(names_of(target, names.PACKS)) == 2


def test_several_parents(repo: Repository, objects: CountingStore) -> None:
    """Merges are for libraries to make; their parents come along whatever way leads to them."""
    states = list(history(4, 0.01))
    first, left, right = (
        repo.commit(state, branch=b).id for state, b in zip(states, "abc", strict=False)
    )
    manifest = repo.snapshot(left)
    merge, encoded = EncodedSnapshot.of(replace(manifest, parents=(left, right)))
    repo._db.snapshots.save(merge, encoded)
    repo.branch("merge", merge)
    target = MemoryStore()
    create(target)
    push_all(objects, target, "merge")
    check(target, {left: states[1], right: states[2], merge.id: states[1]})
    assert names.snapshot_name(first) not in names_of(target)
    push_all(objects, target, "c")  # is among its ancestors
    with casweights.open(target) as there:
        there.branch("b", right)
    with pytest.raises(ConflictError):
        push_all(objects, target, "b")
    with casweights.open(target) as there:
        there.branch("merge", right, force=True)
    push_all(objects, target, "merge")  # by its second parent it came from there


def test_branches_that_went_apart(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    here, there = weights(1, seed=90), weights(1, seed=91)
    mine, theirs = commit(objects, {"w": here}), commit(target, {"w": there})
    fork = commit(objects, {"w": here}, branch="fork", message="another")
    target.reset()
    with pytest.raises(ConflictError, match="pull first, or force") as caught:
        push_all(objects, target)
    assert caught.value.code is ErrorCode.REF_MOVED
    assert "'main'" in caught.value.message
    assert names.snapshot_name(mine) not in written(target)
    with casweights.open(target) as repo:
        assert repo.resolve("main") == theirs
        assert repo.resolve("fork") == fork  # has no conflict
    with pytest.raises(ConflictError):
        push_all(target, objects)  # that is, a pull
    push_all(objects, target, force=True)
    with casweights.open(target) as repo:
        assert repo.resolve("main") == mine
    check(target, versions | {mine: {"w": here}, theirs: {"w": there}, fork: {"w": here}})


def test_several_conflicts(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    for n, branch in enumerate(["main", "fork"]):
        commit(objects, {"w": weights(1, seed=90 + n)}, branch=branch)
        commit(target, {"w": weights(1, seed=92 + n)}, branch=branch)
    target.reset()
    with pytest.raises(ConflictError, match=r"'fork'.*'main'"):
        push_all(objects, target)
    assert target.writes == []


def test_a_branch_that_is_ahead_stays(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    ahead = commit(target, {"w": weights(1, seed=90)})
    target.reset()
    push_all(objects, target)
    assert target.writes == []
    push_all(target, objects, "main")
    with casweights.open(objects) as repo:
        assert repo.resolve("main") == ahead
    push_all(target, objects, "main", force=True)


def test_force_moves_back(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    with casweights.open(objects) as repo:
        back = repo.branch("main", "main~2", force=True)
    push_all(objects, target)
    with casweights.open(target) as repo:
        assert repo.resolve("main") != back
    push_all(objects, target, force=True)
    with casweights.open(target) as repo:
        assert repo.resolve("main") == back


def test_tags_do_not_move(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    send(objects, target)
    with casweights.open(objects) as repo:
        repo.delete_tag("v1")
        repo.tag("v1", "main")
        repo.tag("v2", "main")
    for force in (False, True):
        with pytest.raises(ConflictError, match="'v1'") as caught:
            push_all(objects, target, force=force)
        assert caught.value.code is ErrorCode.ALREADY_EXISTS
    with casweights.open(target) as there:
        assert set(there.tags()) == {"v1", "v2"}
        assert there.resolve("tags/v1") == there.resolve("main~3")


def test_another_writer_is_first(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """While packs are under way, somebody moves the branch."""

    def between() -> None:
        commit(target, {"w": weights(1, seed=93)})

    store = FaultyStore(target, [Fault(call=3, method="put", action=between)])
    with pytest.raises(ConflictError, match="'main'") as caught:
        push_all(objects, store)
    assert caught.value.code is ErrorCode.REF_MOVED
    with casweights.open(target) as repo:
        assert repo.snapshot("main").parents == ()
        assert set(repo.branches()) == {"main", "fork", "alike"}
        assert repo.verify().problems == ()


@pytest.mark.parametrize("ref", ["main", "heads/fork", "v1", "main~1", "id"])
def test_one_version_without_history(
    objects: CountingStore, target: CountingStore, versions: Versions, ref: str
) -> None:
    with casweights.open(objects) as repo:
        version = repo.resolve("main~2") if ref == "id" else repo.resolve(ref)
        before = repo.snapshot(version).parents
    name = str(version) if ref == "id" else ref
    stats = send(objects, target, lambda here, there: push(here, there, [name], history=False))
    assert stats.snapshots == 1
    expected = {"main": "heads/main", "heads/fork": "heads/fork", "v1": "tags/v1"}.get(ref)
    assert stats.refs == ({expected: version} if expected else {})
    assert stats.tips == {expected or name: version}
    with casweights.open(target) as repo:
        assert_same_state(repo.load(version), versions[version])
        assert names_of(target, names.SNAPSHOTS) == {names.snapshot_name(version)}
        assert repo.verify().problems == ()
        assert [found.id for found in repo.log(version)] == [version]
    assert before


@pytest.mark.parametrize("ref", ["main", "heads/main"])
def test_a_shallow_push_of_a_branch_that_moves_says_what_it_brought(
    objects: CountingStore, versions: Versions, ref: str
) -> None:
    """Whenever it moves, the target has the branch, at the version that was reported."""
    for call in count(1):
        fresh = {"w": weights(1, call)}
        move = Fault(call=call, method="list", action=partial(commit, objects, fresh))
        target, source = MemoryStore(), FaultyStore(objects)
        create(target)
        with casweights.open(source) as here, casweights.open(target) as there:
            source.unused, source.calls[:] = [move], []
            stats = here.push(there, [ref], history=False)
            assert there.branches() == {"main": stats.tips["heads/main"]}
            assert stats.refs == stats.tips
            assert there.verify().problems == ()
        if source.unused:
            break
    assert call > 1


def test_from_a_store_without_history(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """It can be pushed on from, back to where it came from and to others."""
    send(objects, target, lambda here, there: push(here, there, ["main"], history=False))
    with casweights.open(objects) as repo:
        old = repo.resolve("main")
    fresh = {"w": step(versions[old]["w"], 0.01, 95)}
    new = commit(target, fresh)
    third = MemoryStore()
    create(third)
    push_all(target, third)
    with casweights.open(third) as repo:
        assert_same_state(repo.load(new), fresh)
        assert_same_state(repo.load(old), versions[old])
    objects.reset()
    push_all(target, objects)
    assert [name.split("/")[0] for name in written(objects)] == ["packs", "snapshots", "refs"]
    check(objects, versions | {new: fresh})
    send(objects, third)  # the rest
    check(third, versions | {new: fresh})


def test_other_configs(objects: CountingStore, versions: Versions) -> None:
    for config in (
        StoreConfig(chunk_size=2 * CHUNK),
        StoreConfig(digest="xxh3-128", chunk_size=CHUNK),
    ):
        target = CountingStore(MemoryStore())
        create(target, config)
        target.reset()
        with pytest.raises(InvalidInputError, match="init --digest blake3 --chunk-size 64KiB"):
            send(objects, target)
        assert target.writes == []


def test_an_empty_store(target: CountingStore) -> None:
    source = MemoryStore()
    create(source)
    assert send(source, target) == TransferStats(snapshots=0, packs=0, nbytes=0, refs={})


def test_a_version_that_is_not_there(objects: CountingStore, target: CountingStore) -> None:
    create(objects)
    unknown = casweights.SnapshotId(bytes(32))
    with pytest.raises(NotFoundError, match="no snapshot"):
        send(objects, target, lambda here, there: transfer(here, there, [unknown]))


def test_tips_alone_move_no_ref(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    tips = list(versions)[4:]
    send(objects, target, lambda here, there: transfer(here, there, tips))
    check(target, versions)
    assert names_of(target, "refs/") == set()


def test_progress(objects: CountingStore, target: CountingStore, versions: Versions) -> None:
    class Progress(Reporter):
        total = done = 0
        open = False
        stats: TransferStats

        def started(self, stage: Stage, total: int) -> None:
            assert (stage, self.open) == (Stage.TRANSFER, False)
            self.open = True
            self.total += total

        def advanced(self, stage: Stage, nbytes: int) -> None:
            self.done += nbytes

        def finished(self, stage: Stage) -> None:
            self.open = False

        def transferred(self, stats: TransferStats) -> None:
            self.stats = stats

    progress = Progress()
    stats = send(objects, target, reporter=progress)
    assert progress.stats == stats
    packs = sum(info.size for info in objects.list(names.PACKS))
    assert progress.done == progress.total == packs
    assert not progress.open


def test_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few packs at a time, by number and by bytes; a larger one goes alone."""

    class Batches(CountingStore):
        calls: list[list[int]]

        def copy_from(self, source: ObjectStore, names: Sequence[str]) -> None:
            self.calls.append([source.size(name) for name in names])
            super().copy_from(source, names)

    def batches() -> list[list[int]]:
        store = Batches(MemoryStore())
        create(store)
        store.calls = []
        send(source, store, push_everything)
        return store.calls

    source = MemoryStore()
    create(source)
    with monkeypatch.context() as patch:
        patch.setattr("casweights.database.writer.PACK_TARGET", 100_000)
        commit(source, {"w": weights(9)})
    ((first, second, *rest),) = batches()
    assert len(rest) > 2
    monkeypatch.setattr("casweights.operations.transfer._BATCH_PACKS", 2)
    assert batches()[:2] == [[first, second], rest[:2]]
    monkeypatch.setattr("casweights.operations.transfer._BATCH_BYTES", 100_000)
    assert batches() == [[size] for size in (first, second, *rest)]


@pytest.mark.parametrize("place", ["payload", "index"])
def test_a_damaged_pack_of_the_source(
    objects: CountingStore, target: CountingStore, versions: Versions, place: str
) -> None:
    """It is told at once, or found in the target; what is checked out is right or an error."""
    for name in names_of(objects, names.PACKS):
        flip_bit(objects, name, 100 if place == "payload" else objects.size(name) - 60)
    if place == "index":
        with pytest.raises(IntegrityError, match=r"packs/"):
            send(objects, target)
        assert names_of(target, names.SNAPSHOTS) == set()
        return
    send(objects, target)
    with casweights.open(target) as repo:
        assert repo.verify().problems
        for version in versions:
            with pytest.raises(IntegrityError):
                repo.load(version)


def test_a_damaged_snapshot_of_the_source(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    damaged = list(versions)[2]
    flip_bit(objects, names.snapshot_name(damaged), 100)
    with pytest.raises(IntegrityError, match=str(damaged)):
        send(objects, target)
    assert names_of(target, "refs/") == set()
    with casweights.open(target) as repo:
        assert repo.verify().problems == ()


def test_a_lost_snapshot_of_the_source(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """A version that has its history, but not here, is damage; one without history is not."""
    lost = list(versions)[1]
    objects.delete(names.snapshot_name(lost))
    with pytest.raises(NotFoundError, match=str(lost)):
        push_all(objects, target, "main")
    assert names_of(target, names.SNAPSHOTS) == set()


def test_a_repack_of_the_source_meanwhile(objects: CountingStore, versions: Versions) -> None:
    """The packs that were to be copied are gone."""
    for call, source in zip((1, 2, 6), copies(objects), strict=False):
        target, before = MemoryStore(), names_of(source, names.PACKS)
        create(target)

        def between(source: ObjectStore = source) -> None:
            with casweights.open(source) as other:
                other.repack(compression="small")

        counting = CountingStore(target)
        store = FaultyStore(counting, [Fault(call=call, method="put", action=between)])
        stats = send(source, store, lambda here, there: push(here, there, ["main"]))
        assert not before & names_of(source)
        assert stats.nbytes == sum(n for name, n in counting.writes if name[:5] != "refs/")
        with casweights.open(target) as repo:
            for version in list(versions)[:5]:
                assert_same_state(repo.load(version), versions[version])


def copies(original: ObjectStore) -> Iterator[MemoryStore]:
    while True:
        store = MemoryStore()
        for info in original.list():
            store.put(info.name, [original.get(info.name)])
        yield store


@pytest.mark.parametrize("after", [False, True])
def test_a_failure_at_any_step_is_made_good(
    objects: CountingStore, versions: Versions, after: bool
) -> None:
    """The target is sound, and repeating brings the rest and nothing else."""
    empty = MemoryStore()
    create(empty)
    with casweights.open(objects) as repo:
        repo.repack(compression="small")
        fresh = {"w": step(list(versions.values())[4]["w"], 0.01, 80)}
        versions[repo.commit(fresh).id] = fresh
    for calls, store in enumerate(copies(empty), 1):
        faulty = FaultyStore(store, [Fault(call=calls, after=after)])
        failed = True
        try:
            send(objects, faulty)
            failed = False
        except StoreError:
            pass
        with casweights.open(store) as repo:
            assert repo.verify().problems == ()
        arrived, again = names_of(store), FaultyStore(store)
        send(objects, again)
        put = {name for method, name in again.calls if method == "put"}
        assert not arrived & put
        check(store, versions)
        if not failed:
            assert not put
            break
    assert calls > 20


def test_order_of_writing(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """Whatever has arrived, what is visible is complete."""
    send(objects, target)
    store = MemoryStore()
    create(store)
    for name in written(target):
        store.put(name, [target.get(name)])
        with casweights.open(store) as repo:
            assert repo.verify(quick=True).problems == ()


def test_errors_are_all_of_ours(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """A source whose packs are gone altogether."""
    for name in names_of(objects, names.PACKS):
        objects.delete(name)
    with pytest.raises(CasweightsError, match="no way to rebuild"):
        send(objects, target)
