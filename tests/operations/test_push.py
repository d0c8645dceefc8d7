"""Push and pull: branches and tags are copied with their versions, and never lose one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights.errors import (
    ConflictError,
    ErrorCode,
    NotFoundError,
)
from casweights.format import names
from casweights.format.manifest import EncodedSnapshot
from casweights.operations.push import push
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore
from casweights.testing.states import assert_same_state
from tests.histories import history, step, weights
from tests.operations.transfers import (
    Versions,
    check,
    commit,
    create,
    names_of,
    push_all,
    send,
    written,
)

if TYPE_CHECKING:
    from casweights import Repository
    from casweights.testing import CountingStore


def test_refs_can_be_given_as_names_or_with_prefixes(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    with casweights.open(objects) as repo:
        repo.tag("fork", "fork")  # names the same version as the branch
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


@pytest.mark.usefixtures("packs_apart")
def test_a_push_of_a_tag_copies_only_its_history(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    push_all(objects, target, "tags/v1")
    first_two = dict(list(versions.items())[:2])
    check(target, first_two)
    assert len(names_of(target, names.PACKS)) == 2


def test_all_parents_of_a_merge_are_pushed(repo: Repository, objects: CountingStore) -> None:
    """Only libraries create merges; all of their parents are copied."""
    states = list(history(4, 0.01))
    first, left, right = (
        repo.commit(state, branch=b).id for state, b in zip(states, "abc", strict=False)
    )
    manifest = repo.snapshot(left)
    merge, encoded = EncodedSnapshot.of(replace(manifest, number=2, parents=(left, right)))
    repo._db.snapshots.save(*repo._db.snapshots.encode(merge, encoded))
    repo.branch("merge", merge)
    target = MemoryStore()
    create(target)
    push_all(objects, target, "merge")
    check(target, {left: states[1], right: states[2], merge.id: states[1]})
    assert names.snapshot_name(first) not in names_of(target)
    push_all(objects, target, "c")  # the target has this version, as a parent of the merge
    with casweights.open(target) as there:
        there.branch("b", right)
    with pytest.raises(ConflictError):
        push_all(objects, target, "b")
    with casweights.open(target) as there:
        there.branch("merge", right, force=True)
    push_all(objects, target, "merge")  # the branch is at its second parent, so it moves forward


def test_a_diverged_branch_is_a_conflict_and_moves_only_with_force(
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


def test_several_conflicts_are_reported_together(
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


def test_force_moves_a_branch_back(
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


def test_a_tag_is_never_moved(
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


def test_a_branch_moved_during_the_push_is_a_conflict(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """Another writer moves the branch while packs are copied."""

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
def test_a_push_without_history_copies_one_version(
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
def test_a_shallow_push_reports_the_version_that_it_copied(
    objects: CountingStore, versions: Versions, ref: str
) -> None:
    """If the source's branch moves during the push, the target still has the reported version."""
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


def test_a_shallow_store_can_be_pushed_from(
    objects: CountingStore, target: CountingStore, versions: Versions
) -> None:
    """Its versions can be pushed to other stores and back to the original one."""
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
    assert [name.split("/")[0] for name in written(objects)] == ["snapshots", "refs"]
    check(objects, versions | {new: fresh})
    send(objects, third)  # the rest
    check(third, versions | {new: fresh})


@pytest.mark.parametrize(
    ("refs", "options"),
    [
        (None, {}),
        (["fork", "v1"], {}),
        ("main~1", {"history": False}),
        (None, {"unnamed": True}),
        (["main"], {"force": True}),
    ],
)
def test_a_pull_equals_a_push_from_the_other_store(
    objects: CountingStore, versions: Versions, refs: Any, options: dict[str, bool]
) -> None:
    pushed, pulled = MemoryStore(), MemoryStore()
    branch, own = "main" if "force" in options else "own", []
    for target in (pushed, pulled):
        create(target)
        own.append(commit(target, {"own": weights(1, seed=5)}, branch=branch))
    with casweights.open(objects) as source:
        source.branch("gone", "fork")
        gone = source.commit({"w": weights(1, seed=6)}, branch="gone")
        source.delete_branch("gone")
        with casweights.open(pushed) as there:
            expected = source.push(there, refs, **options)
        with casweights.open(pulled) as here:
            assert here.pull(source, refs, **options) == expected
            assert expected.tips
    came = names_of(pulled, names.SNAPSHOTS) - {names.snapshot_name(own[1])}
    assert came == names_of(pushed, names.SNAPSHOTS) - {names.snapshot_name(own[0])}
    assert (names.snapshot_name(gone.id) in came) is options.get("unnamed", False)
