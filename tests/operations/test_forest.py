"""A repack of related versions: which of them are differences from which is chosen again."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.errors import CasweightsError
from casweights.format import names
from casweights.operations.forest import Forest
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore
from tests.histories import CHUNK, check_versions, pack_names, step, weights
from tests.operations.damage import copy_of

if TYPE_CHECKING:
    from casweights import Repository, SnapshotId
    from tests.histories import State

pytestmark = pytest.mark.usefixtures("packs_apart")

CONFIG = StoreConfig(chunk_size=CHUNK)
LINE = 6  # versions that were made of each other, one after the other
NOW = timedelta(0)


def states() -> list[State]:
    """Return a model that is trained on and on, and a variant of each end."""
    found = [{"rare": weights(3, seed=90), "often": weights(3, seed=91)}]
    for n in range(LINE - 1):
        last = found[-1]
        often, rare = step(last["often"], 0.45, n), step(last["rare"], 0.02, n)
        found.append({"rare": rare, "often": often})
    ends = [found[0], found[-1]]
    return found + [{name: step(w, 0.05, 70) for name, w in state.items()} for state in ends]


@cache
def filled(*, declared: bool) -> tuple[MemoryStore, dict[SnapshotId, State]]:
    """Return a store with them, each on a branch of its own."""
    store, versions = MemoryStore(), dict[casweights.SnapshotId, "State"]()
    parents = [None, *range(LINE - 1), 0, LINE - 1]
    with casweights.open(store, create=True, config=CONFIG) as repo:
        for n, (state, parent) in enumerate(zip(states(), parents, strict=True)):
            above = None if parent is None or not declared else f"{parent}"
            versions[repo.commit(state, branch=f"{n}", parent=above).id] = state
    return store, versions


def check_reads(repo: Repository, versions: dict[SnapshotId, State]) -> None:
    """Check that no version reads more than one and a half of a whole, and no tensor three."""
    repo.database.index.load()
    for version in versions:
        whole: dict[str | None, int] = {}
        read: dict[str | None, int] = {}
        for chunk, piece in repo.snapshot(version).pieces():
            chain = repo.database.index.chain(chunk)
            assert chain is not None
            whole[piece.name] = whole.get(piece.name, 0) + chain.whole_size
            read[piece.name] = read.get(piece.name, 0) + chain.nbytes
        assert sum(read.values()) <= 1.5 * sum(whole.values())
        assert all(read[name] <= 3 * size for name, size in whole.items())


@pytest.mark.parametrize("declared", [True, False])
def test_related_versions_become_a_small_tree(*, declared: bool) -> None:
    store, versions = filled(declared=declared)
    store = copy_of(store)
    with casweights.open(store) as repo:
        before = repo.stats().pack_bytes
        done = repo.repack(grace=NOW)
        assert repo.stats().pack_bytes < 0.95 * before
        assert done.compared == len(versions)
        assert done.least_bytes <= done.tree_bytes <= 1.1 * done.least_bytes
        assert done.tree_bytes == pytest.approx(done.nbytes, rel=0.03)
        check_reads(repo, versions)
        stored = {name: store.get(name) for name in pack_names(store)}
        assert repo.repack(grace=NOW).aside_bytes == 0
        assert {name: store.get(name) for name in pack_names(store)} == stored
        late = {name: step(tensor, 0.02, 99) for name, tensor in states()[-1].items()}
        versions = {**versions, repo.commit(late, branch="late", parent=f"{LINE + 1}").id: late}
        check_reads(repo, versions)
    check_versions(store, versions)


def test_a_tree_that_promises_too_much_keeps_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all chunks of a version read is added up before any of them may read more."""
    store, versions = filled(declared=True)
    store = copy_of(store)
    far = sorted(enumerate(versions), key=lambda item: min(item[0], LINE - 1 - item[0]))
    order = [version for _, version in far]
    above = dict(zip(order, [None, *order[:-1]], strict=True))
    monkeypatch.setattr("casweights.operations.repack.forest", lambda *_: Forest(above))
    with casweights.open(store) as repo:
        repo.repack(compression="fast", grace=NOW)
        check_reads(repo, versions)
    check_versions(store, versions)


@pytest.mark.parametrize("kind", ["lost", "false"])
def test_signatures_that_say_nothing_true_cost_bytes_alone(kind: str) -> None:
    store, versions = filled(declared=True)
    store = copy_of(store)
    with casweights.open(store) as repo:
        before = repo.stats().pack_bytes
        signatures = repo.database.signatures
        found = signatures.of(versions)
        store.delete_all([info.name for info in store.list(names.SIGNATURES)])
        if kind == "false":
            signatures.add(
                one.entry(version)
                for version, one in zip(versions, reversed(found.values()), strict=True)
            )
        repo.repack(grace=NOW)
        assert repo.stats().pack_bytes <= before
        check_reads(repo, versions)
    check_versions(store, versions)


def test_a_repack_that_would_make_the_store_larger_writes_nothing() -> None:
    """A tree takes less than what is chosen without signatures, which are lost since."""
    store, versions = filled(declared=True)
    store = copy_of(store)
    with casweights.open(store) as repo:
        repo.repack(grace=NOW)
        repo.database.signatures.keep(wanted=False)
        before = {name: store.get(name) for name in pack_names(store)}
        assert repo.repack(grace=NOW).aside_bytes == 0
        assert {name: store.get(name) for name in pack_names(store)} == before
    check_versions(store, versions)


@pytest.mark.parametrize(("method", "call"), [("put", 1), ("put", 2), ("delete_all", 1)])
def test_a_repack_that_ends_early_can_be_repeated(method: str, call: int) -> None:
    store, versions = filled(declared=True)
    store = copy_of(store)
    faulty = FaultyStore(store, [Fault(call=call, method=method)])
    with casweights.open(faulty) as repo:
        try:
            repo.repack(grace=NOW)
        except CasweightsError:
            check_versions(store, versions)
    with casweights.open(store) as repo:
        repo.repack(grace=NOW)
        check_reads(repo, versions)
    check_versions(store, versions)
