"""Two operations interleaved at every point: no acknowledged version is lost.

The first operation is interrupted before one of its calls of the store. At this point, the second
one begins and runs up to one of its writes, or to its end; the rest of it runs after the first one.
So each of the two sees unfinished work of the other. This is repeated for all writes, at all calls
or at a sample of them.
"""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import pytest
import torch

import casweights
from casweights import Subscriber
from casweights.config import StoreConfig
from casweights.database.moves import encode_move
from casweights.database.refs import Refs
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.operations import maintain, merging
from casweights.operations.maintain import Maintenance
from casweights.stores.base import Capabilities, ObjectStore
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, State, step, weights
from tests.large_versions import packs_apart
from tests.lengths import moments, spread
from tests.operations.turns import Other, Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights import Repository, Snapshot

    Versions = dict[SnapshotId, State]
    Operation = Callable[[ObjectStore], Versions]

CONFIG = StoreConfig(chunk_size=CHUNK)
NOW = datetime(2026, 1, 1, tzinfo=UTC)  # a fixed time, so that equal versions have equal IDs


@pytest.fixture(scope="module", params=["carried", "apart"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests run twice: with snapshots that carry frames, and with packs and bare snapshots."""
    for cached in (beginning, elsewhere):
        cached.cache_clear()
    checked.clear()
    with packs_apart() if request.param == "apart" else nullcontext():
        yield


class World(MemoryStore):
    """A store that is cheap to copy.

    Attributes:
        kind: "directory", "remote" with lagging listings, or "bucket", where moves of branches are
            versions.
    """

    def __init__(self, kind: str = "directory") -> None:
        super().__init__()
        self.kind = kind
        self.capabilities = Capabilities(
            exclusive_create=kind != "bucket",
            listing_lags=kind != "directory",
            cheap_reads=kind == "directory",
            clock_skew=0.0 if kind == "bucket" else None,
        )

    def clone(self) -> World:
        other = World(self.kind)
        other._objects, other._created = dict(self._objects), dict(self._created)
        return other

    def copy(self, name: str, new_name: str) -> bool:
        """Copy an object, as `SupportsCopy.copy` does."""
        return self.put(new_name, [self.get(name)])


class Beginning(NamedTuple):
    """The store that all operations begin with.

    Attributes:
        store: The store.
        versions: Its versions.
        loose: Name of the pack with chunks that no version contains.
    """

    store: World
    versions: Versions
    loose: str


MAIN = {"w": weights(2, seed=1)}
LATER = {"w": step(MAIN["w"], 0.02, 3)}
SIDE = {"v": weights(1, seed=2)}
LOOSE = weights(1, seed=9)
NEW = {"w": step(LATER["w"], 0.02, 4), "v": SIDE["v"], "n": weights(1, seed=5)}


def open_store(store: ObjectStore, *, create: bool = False) -> Repository:
    return casweights.open(store, create=create, config=CONFIG, workers=1)


@cache
def beginning(kind: str) -> Beginning:
    """Create a store with two branches, and with chunks that no version contains."""
    store = World(kind)
    with open_store(store, create=True) as repo:
        versions = {repo.commit(state).id: state for state in (MAIN, LATER)}
        versions[repo.commit(SIDE, branch="side").id] = SIDE
        before = set(store.list(names.PACKS))
        with packs_apart():
            unfinished = repo.commit({"w": LOOSE}, branch="unfinished").id
        repo.delete_branch("unfinished")
        store.delete(names.snapshot_name(unfinished))
    (loose,) = set(store.list(names.PACKS)) - before
    return Beginning(store, versions, loose.name)


def commit(store: ObjectStore) -> Versions:
    """Commit new chunks, differences from old ones, and chunks that the store contains."""
    with open_store(store) as repo:
        return {repo.commit(NEW, time=NOW).id: NEW}


def commit_again(store: ObjectStore) -> Versions:
    """Commit chunks that no version contains, with a handle that has already indexed them."""
    state = {"w": LOOSE, "v": SIDE["v"]}
    with open_store(store) as repo:
        repo.stats()
        return {repo.commit(state, branch="again", time=NOW).id: state}


def repack_small(store: ObjectStore) -> Versions:
    with open_store(store) as repo:
        repo.repack(compression="small")
    return {}


def repack_fast(store: ObjectStore) -> Versions:
    with open_store(store) as repo:
        repo.repack(compression="fast")
    return {}


@pytest.fixture(scope="module", autouse=True)
def merging_early() -> Iterator[None]:
    """Let maintenance archive all versions that are no heads, and merge all packs.

    For all tests, because operations that patched at the same time would undo it out of order.
    """
    with (
        patch.object(maintain, "_RECENT_PACKS", 0),
        patch.multiple(merging, FAN_IN=2, LEVELS=(1 << 30,)),
        patch.object(Refs, "logged", heads),
    ):
        yield


def heads(refs: Refs) -> set[SnapshotId]:
    """The heads alone: logs keep enough moves that none of these versions would be old."""
    return set(refs.branches().values())


def merge(store: ObjectStore) -> Versions:
    """Maintain the store, as if all but the heads of its branches were old."""
    with open_store(store) as repo:
        repo.maintain()
    return {}


def merge_between_commits(store: ObjectStore) -> Versions:
    """Merge packs in slices, between which another handle commits."""
    with (
        open_store(store) as repo,
        closing(repo.database.apart()) as apart,
    ):
        slices = Maintenance(apart, merged=repo.database.learn_merged).slices()
        versions: Versions = {}
        for n, _ in enumerate(slices):
            if n in (2, 5):
                state = {"w": step(LATER["w"], 0.02, 10 + n)}
                versions[repo.commit(state, branch="run", time=NOW).id] = state
        return versions


def follow(store: ObjectStore) -> Versions:
    """Bring live tensors from one version to the next and back."""
    live = {"w": torch.zeros_like(MAIN["w"])}
    world = store.ability(World)
    assert world is not None
    versions = beginning(world.kind).versions
    first, second, _ = versions
    with open_store(store) as repo, Subscriber(repo) as replica:
        for version in (first, second, first):
            replica.sync(live, to=str(version))
            assert_same_state(live, versions[version])
    return {}


def repack_by_turns(store: ObjectStore) -> Versions:
    """Repack several times, so that the packs become the same as before."""
    for _ in range(2):
        repack_fast(store)
        repack_small(store)
    return {}


def delete_branch(store: ObjectStore) -> Versions:
    with open_store(store) as repo:
        repo.delete_branch("side")
    return {}


def verify(store: ObjectStore) -> Versions:
    with open_store(store) as repo:
        found = repo.verify()
    assert found.problems == ()
    return {}


def push_from(store: ObjectStore) -> Versions:
    target = World()
    with open_store(store) as repo, open_store(target, create=True) as other:
        repo.push(other, ["main"])
        assert_same_state(other.load("main~0"), repo.load(other.resolve("main")))
        assert other.verify().problems == ()
    return {}


def shallow_push_from(store: ObjectStore) -> Versions:
    target = World()
    with open_store(store) as repo, open_store(target, create=True) as other:
        world = store.ability(World)
        assert world is not None
        version = next(iter(beginning(world.kind).versions))
        repo.push(other, [str(version)], history=False)
        assert_same_state(other.load(version), MAIN)
        assert other.verify().problems == ()
    return {}


@cache
def elsewhere() -> tuple[World, SnapshotId]:
    """Create a store with the branch ``main`` and one more version."""
    other = World()
    original = beginning("directory").store
    with open_store(original) as repo, open_store(other, create=True) as target:
        repo.push(target, ["main"])
        return other, target.commit(NEW).id


def push_into(store: ObjectStore) -> Versions:
    source, version = elsewhere()
    with open_store(source) as repo, open_store(store) as target:
        repo.push(target, force=True)
    return {version: NEW}


def check(store: World, versions: Versions) -> None:
    """Check that all versions can be read before a repack, after one, and from a copy."""
    with open_store(store) as repo:
        assert repo.verify().problems == ()
    target = World()
    with open_store(store) as repo, open_store(target, create=True) as other:
        for version, state in versions.items():
            assert_same_state(repo.load(version), state)
        repo.push(other, unnamed=True)
        assert set(other.database.snapshots.ids()) >= set(versions)
        repo.repack(compression="small")
    with open_store(store) as repo:
        assert repo.verify().problems == ()
        for version, state in versions.items():
            assert_same_state(repo.load(version), state)


def interleave(first: Operation, second: Operation, *, kind: str, call: int, write: int) -> bool:
    """Begin `second` before a call of `first`; return whether this call and write exist."""
    original, versions, _ = beginning(kind)
    store, other = original.clone(), None

    def interrupt(number: int) -> None:
        nonlocal other
        if number == call:
            other = Other(store, second, write)
            other.begin()

    done = first(Watched(store, before=interrupt))
    if other is None:
        return False
    was_stopped = other.writes == write
    other.finish()
    versions = versions | done | other.versions
    check_once(store, versions)
    return was_stopped


def check_once(store: World, versions: Versions) -> None:
    """Check a store, unless one with the same objects was checked before."""
    end = store.kind, content_of(store), frozenset(versions)
    if end not in checked:
        check(store, versions)
        checked.add(end)


def content_of(store: World) -> frozenset[tuple[str, int]]:
    """Return the names and hashes of all objects, without what is random or a time in them."""
    found = set()
    for info in store.list():
        name = re.sub(r"(?<=/replaced-)\w+", "", info.name)
        is_dated = name.startswith((names.COLLECTIONS, names.HEADS))
        found.add((name, 0 if is_dated else hash(store.get(info.name))))
    return frozenset(found)


checked: set[tuple[str, frozenset[tuple[str, int]], frozenset[SnapshotId]]] = set()


PAIRS: list[tuple[Operation, Operation]] = [
    (repack_small, commit),
    (commit, repack_small),
    (repack_small, commit_again),
    (commit_again, repack_small),
    (repack_small, repack_fast),
    (repack_small, repack_by_turns),
    (repack_small, push_into),
    (push_into, repack_small),
    (push_from, repack_small),
    (shallow_push_from, repack_small),
    (verify, repack_small),
    (verify, delete_branch),
    (verify, commit),
    (delete_branch, repack_small),
    (merge, commit_again),
    (commit_again, merge),
    (merge, repack_small),
    (repack_small, merge),
    (merge, push_into),
    (push_from, merge),
    (verify, merge),
    (follow, merge),
    (merge_between_commits, merge),
    (merge_between_commits, repack_small),
]


def is_long(first: Operation, second: Operation) -> bool:
    """Whether two operations have very many interleavings."""
    return first is merge_between_commits or second is repack_by_turns


def every_interleaving(first: Operation, second: Operation, *, kind: str, calls: int) -> int:
    """Interleave two operations at some of the calls of the first; return in how many ways."""
    ways, numbers = 0, [0]
    first(Watched(beginning(kind).store.clone(), before=numbers.append))
    seed = kind, first.__name__, second.__name__
    for call in spread(range(1, max(numbers) + 1), calls, seed):
        for write in moments(12, (seed, call)):
            ways += 1
            if not interleave(first, second, kind=kind, call=call, write=write):
                break
    return ways


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda operation: operation.__name__)
def test_two_operations_lose_nothing_in_a_directory(first: Operation, second: Operation) -> None:
    calls = 3 if is_long(first, second) else 4
    assert every_interleaving(first, second, kind="directory", calls=calls) > 2


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda operation: operation.__name__)
def test_two_operations_lose_nothing_in_a_remote_store(first: Operation, second: Operation) -> None:
    assert every_interleaving(first, second, kind="remote", calls=3) > 2


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda operation: operation.__name__)
def test_two_operations_lose_nothing_in_a_bucket(first: Operation, second: Operation) -> None:
    assert every_interleaving(first, second, kind="bucket", calls=3) > 2


def repack_and_commit(call: int) -> bool:
    """Repack, and begin a commit with the same handle at a call; return whether it began.

    The commit may have to wait until the repack has read the packs, so the repack does not wait
    for the commit to end.
    """
    original, versions, _ = beginning("directory")
    store = original.clone()
    watched = Watched(store, one_by_one=False)
    with ThreadPoolExecutor(1) as pool, open_store(watched) as repo:
        repo.stats()  # reads the index, so that the commit need not
        commits: list[Future[Snapshot]] = []
        numbers = count(1)

        def begin_commit(_: int) -> None:
            if next(numbers) == call:
                commits.append(pool.submit(repo.commit, NEW, time=NOW))
                wait(commits, 0.02)

        watched.before = begin_commit
        repo.repack(compression="small")
        done = {commit.result(30).id: NEW for commit in commits}
    check_once(store, versions | done)
    return bool(done)


def test_a_commit_and_a_repack_with_one_handle_both_succeed() -> None:
    assert next(call for call in moments(6) if not repack_and_commit(call)) > 5


def verify_during_repack(store: World, call: int) -> tuple[list[str], bool]:
    """Verify with a repack at a call; return the problems, and whether the repack happened."""
    numbers: list[int] = []

    def repack(number: int) -> None:
        if number == call:
            numbers.append(number)
            repack_small(store)

    with open_store(Watched(store, before=repack)) as repo:
        problems = [str(problem) for problem in repo.verify().problems]
    return problems, bool(numbers)


def test_verify_during_a_repack_reports_all_damage_and_nothing_else() -> None:
    """The repack keeps the pack with a damaged frame, and replaces all others."""
    original, _, loose = beginning("directory")
    damaged = original.clone()
    flip_bit(damaged, loose, 100)
    damaged.put(names.move_name(names.TAGS, "lost", 1), [encode_move(SnapshotId(bytes(32)))])
    for call in moments(4):
        problems, repacked = verify_during_repack(damaged.clone(), call)
        assert [loose in problems[0], "tags/lost" in problems[-1], len(problems)] == [True, True, 2]
        if not repacked:
            break
