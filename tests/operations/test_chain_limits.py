"""How large differences may be: what they save, and what reading their chains costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies as st

import casweights
from casweights.config import StoreConfig
from casweights.stores.memory import MemoryStore
from tests.histories import CHUNK, blur, check_versions, step, weights
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from casweights import Repository, SnapshotId
    from casweights.database.chain import Chain
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=CHUNK)


def chains(repo: Repository, version: SnapshotId) -> dict[str, list[Chain]]:
    """Return the chains of each tensor's chunks."""
    found: dict[str, list[Chain]] = {}
    repo._db.index.load()
    for chunk, piece in repo.snapshot(version).pieces():
        chain = repo._db.index.chain(chunk)
        assert chain is not None
        assert piece.name is not None
        found.setdefault(piece.name, []).append(chain)
    return found


def links(repo: Repository, version: SnapshotId) -> dict[str, list[int]]:
    """Return the numbers of frames of these chains."""
    found = chains(repo, version)
    return {name: [chain.links for chain in tensor] for name, tensor in found.items()}


def reads(repo: Repository) -> list[int]:
    return [version.read_bytes for version in repo.stats().versions]


@pytest.fixture
def blurred() -> list[State]:
    """Three versions: a base, and two that differ from it, and more from each other, in `wild`."""
    calm, wild = weights(6), weights(2, seed=1)
    return [{"calm": calm, "wild": wild}] + [
        {"calm": step(calm, 0.01, n), "wild": blur(wild, 0.1, n)} for n in (10, 11)
    ]


def test_tensors_that_change_much_use_what_the_others_leave(
    repo: Repository, blurred: Sequence[State]
) -> None:
    versions = {repo.commit(state).id: state for state in blurred}
    last = list(versions)[-1]
    assert links(repo, last)["wild"] == [2, 2]
    first, *others = reads(repo)
    assert max(others) <= 1.5 * first
    repo.repack()
    assert links(repo, last)["wild"] == [2, 2]
    check_versions(repo._db.store, versions)


def test_where_all_tensors_change_much_they_are_stored_whole_again(
    repo: Repository, blurred: Sequence[State]
) -> None:
    versions = [repo.commit({"wild": state["wild"]}).id for state in blurred]
    assert [links(repo, version)["wild"] for version in versions] == [[1, 1], [2, 2], [1, 1]]


def test_tensors_that_were_stored_whole_leave_nothing_to_others(repo: Repository) -> None:
    """They may become large differences in the same version, as single ones of a chain."""
    one, other = weights(2), weights(2, seed=1)
    repo.commit({"one": one, "other": weights(2, seed=2)})
    repo.commit({"one": blur(one, 0.1, 10), "other": other})
    last = repo.commit({"one": blur(one, 0.1, 11), "other": blur(other, 0.1, 12)})
    assert links(repo, last.id) == {"one": [1, 1], "other": [2, 2]}


def test_a_difference_that_becomes_large_at_once_uses_nothing_of_others(repo: Repository) -> None:
    """All tensors may change more at the same time, as at a higher learning rate."""
    calm, wild = weights(6), weights(2, seed=1)
    for n, amount in enumerate((0, 0.01, 0.1)):
        state = {"calm": step(calm, 0.01, n), "wild": blur(wild, amount, 10 + n)}
        last = repo.commit(state)
    assert links(repo, last.id)["wild"] == [1, 1]


def test_a_poor_relative_does_not_block_what_follows(repo: Repository) -> None:
    """A version without a parent is no large difference, on which nothing can build."""
    first = blur(weights(4), 0.2, 1)
    run = [{"w": first}, {"w": step(first, 0.05, 2)}, {"w": step(first, 0.05, 3)}]
    with casweights.open(MemoryStore(), create=True, config=repo.config) as alone:
        for state in run:
            alone.commit(state)
        best = alone.stats().pack_bytes
    repo.commit({"w": weights(4)}, branch="relative")
    before = repo.stats().pack_bytes
    for state in run:
        repo.commit(state)
    assert repo.stats().pack_bytes - before <= 1.02 * best


def test_a_good_relative_is_used_although_some_of_its_tensors_are_poor(
    repo: Repository, blurred: Sequence[State]
) -> None:
    repo.commit(blurred[0], branch="relative")
    assert links(repo, repo.commit(blurred[1]).id) == {"calm": [2] * 6, "wild": [2, 2]}


# --- Random histories.

CHANGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "same": lambda tensor, _: tensor,
    "few": lambda tensor, seed: step(tensor, 0.02, seed),
    "half": lambda tensor, seed: step(tensor, 0.5, seed),
    "all": lambda tensor, seed: blur(tensor, 0.03, seed),
    "far": lambda tensor, seed: blur(tensor, 0.1, seed),
    "apart": lambda tensor, seed: blur(tensor, 0.5, seed),
    "new": lambda tensor, seed: weights(len(tensor) * 2 // CHUNK, seed),
}
KINDS = st.sampled_from(sorted(CHANGES))
HISTORIES = st.lists(st.tuples(KINDS, KINDS, KINDS), min_size=2, max_size=6)


def differences(chains: Sequence[Chain]) -> int:
    return sum(chain.nbytes - chain.whole_size for chain in chains)


def whole(chains: Sequence[Chain]) -> int:
    return sum(chain.whole_size for chain in chains)


@hypothesis.settings(max_examples=examples(8))
@hypothesis.given(HISTORIES)
def test_differences_of_any_history_keep_to_their_shares(
    history: Sequence[tuple[str, str, str]],
) -> None:
    """No tensor takes twice its bytes; what some borrow fits into what the version may read."""
    state = {str(n): weights(n, seed=90 + n) for n in (1, 2, 3)}
    with casweights.open(MemoryStore(), create=True, config=CONFIG) as repo:
        before = chains(repo, repo.commit(state).id)
        for seed, kinds in enumerate(history):
            changes = zip(state.items(), kinds, strict=True)
            state = {name: CHANGES[kind](tensor, seed) for (name, tensor), kind in changes}
            now = chains(repo, repo.commit(state).id)
            borrowed = 0
            for name, tensor in now.items():
                assert differences(tensor) <= 0.92 * whole(tensor)
                for chain, old in zip(tensor, before[name], strict=True):
                    half = differences([chain]) > 0.52 * chain.whole_size
                    if half and differences([old]) and chain.frames[-1] != old.frames[-1]:
                        borrowed += differences([chain])
            assert borrowed <= 0.51 * sum(map(whole, before.values()))
            before = now
