"""Random walks of a replica through a history with branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import casweights
from casweights import Subscriber
from casweights.config import StoreConfig
from casweights.stores.memory import MemoryStore
from tests.histories import CHUNK, step, weights
from tests.lengths import examples
from tests.sync.models import bits, places, replica

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.sync.subscriber import Verify
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=CHUNK)


class Tree:
    """A history with branches, and the state of each version."""

    def __init__(self) -> None:
        self.repo = casweights.open(MemoryStore(), create=True, config=CONFIG, workers=2)
        generator = np.random.default_rng(0)
        self.states: list[State] = [{"w": weights(3), "v": weights(1, 1)[:-5], "z": torch.ones(3)}]
        self.versions = [self.repo.commit(self.states[0]).id]
        for n in range(1, 14):
            parent = int(generator.integers(max(0, n - 5), n))
            density = float(generator.choice([0.002, 0.02, 0.7]))
            state = dict(self.states[parent])
            for name in generator.choice(["w", "v"], int(generator.integers(1, 3)), replace=False):
                state[name] = step(state[name], density, n)
            branch = f"b{n}"
            self.repo.branch(branch, self.versions[parent])
            self.states.append(state)
            self.versions.append(self.repo.commit(state, branch=branch).id)


@pytest.fixture(scope="module")
def tree() -> Iterator[Tree]:
    made = Tree()
    with made.repo:
        yield made


NUMBERS = st.integers(0, 13)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("sync"), NUMBERS),
        st.tuples(st.just("prefetch"), NUMBERS),
        st.tuples(st.just("apply"), NUMBERS),
        st.tuples(st.just("touch"), NUMBERS),
        st.tuples(st.just("verify"), NUMBERS),
    ),
    min_size=1,
    max_size=12,
)


@hypothesis.settings(max_examples=examples(30))
@hypothesis.given(
    moves=MOVES,
    start=st.one_of(st.none(), NUMBERS),
    memory=st.sampled_from([0, 500, 20_000, 1 << 20]),
    verify=st.sampled_from(["full", "patch"]),
)
def test_random_walks_through_a_history_hold_the_right_bits(
    tree: Tree, moves: list[tuple[str, int]], start: int | None, memory: int, verify: Verify
) -> None:
    live = replica(tree.states[0])
    if start is not None:
        live = {name: tensor.clone() for name, tensor in tree.states[start].items()}
    where, prefetched, at = places(live), None, None
    with Subscriber(tree.repo, memory=memory, verify=verify) as subscriber:
        for move, n in moves:
            if move == "prefetch":
                before = bits(live)
                assert subscriber.prefetch(live, to=tree.versions[n]) == tree.versions[n]
                assert bits(live) == before
                prefetched = n
            elif move == "touch":
                live["w"][n * 7000] = n
                at = prefetched = None
            elif move == "verify" and at is not None:
                subscriber.verify()
                prefetched = None
            elif move == "sync" or (move == "apply" and prefetched is not None):
                to = n if move == "sync" or prefetched is None else prefetched
                if move == "sync":
                    subscriber.sync(live, to=tree.versions[n])
                else:
                    subscriber.sync(live)
                at, prefetched = to, None
                assert bits(live) == bits(tree.states[to])
                assert subscriber.version == tree.versions[to]
    assert places(live) == where
    assert at is None or bits(live) == bits(tree.states[at])
