"""What a fresh process requests does not depend on whether maintenance ran before it."""

from __future__ import annotations

import re
from contextlib import nullcontext
from datetime import timedelta
from functools import cache, lru_cache
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import torch

import casweights
from casweights import Subscriber
from casweights.config import REPLACED_GRACE, StoreConfig
from casweights.testing.states import assert_same_state
from tests.archived import copy_of, maintain
from tests.histories import CHUNK, ELEMENTS
from tests.large_versions import packs_apart
from tests.requests import KINDS, Requests, memory_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casweights import Repository
    from casweights.stores.memory import MemoryStore
    from tests.histories import State
    from tests.requests import Request

    Use = Callable[[Repository, str, State], State]

CONFIG = StoreConfig(chunk_size=CHUNK)
CHUNKS = 10
MORE = 10  # requests: a few listings, look-ups and segments, however long the history is


class Shape(NamedTuple):
    """The shape of a history.

    Attributes:
        steps: Number of versions.
        changed: Number of chunks that each of them changes; others stay for long.
        branches: Number of branches, which take turns.
        apart: Whether frames are in packs, and not in the objects of versions.
        night: Number of versions after which the store is maintained each time.
    """

    steps: int
    changed: int = 2
    branches: int = 1
    apart: bool = False
    night: int = 0


SHAPES = {
    "short": Shape(80),
    "long": Shape(120),
    "longer": Shape(240),
    "all chunks change": Shape(120, changed=CHUNKS),
    "packs": Shape(120, apart=True),
    "branches": Shape(240, branches=3),
    "some nights": Shape(120, night=30),
    "many nights": Shape(240, night=30),
    "nights of packs": Shape(120, apart=True, night=30),
}


def make(store: MemoryStore, shape: Shape) -> dict[str, State]:
    """Make a history; return the states of its branches, of a tag, and of an old version."""
    refs: dict[str, State] = {}
    generator = np.random.default_rng(0)
    live = [_weights(generator) for _ in range(shape.branches)]
    with packs_apart() if shape.apart else nullcontext():
        repo = casweights.open(store, create=True, config=CONFIG)
        for n in range(shape.steps):
            state, branch = live[n % shape.branches], f"branch{n % shape.branches}"
            _step(state, shape.changed, generator)
            version = repo.commit(state, branch=branch, message=f"step {n}").id
            kept = refs[branch] = {name: tensor.clone() for name, tensor in state.items()}
            if n == shape.steps // 8:
                refs["tagged"] = kept
                repo.tag("tagged", version)
            if n == shape.steps // 5:
                refs[f"branch0~{(shape.steps - 1 - n) // shape.branches}"] = kept
            if shape.night and n % shape.night == shape.night - 1 and n < shape.steps - 1:
                maintain(store)
        repo.close()
    return refs


@lru_cache(2)
def run_of(kind: str, shape: Shape) -> tuple[MemoryStore, dict[str, State]]:
    """Return a store with a history, and what `make` returns; tests copy what they change."""
    store = memory_store(kind)
    return store, make(store, shape)


def _weights(generator: np.random.Generator) -> State:
    rows = generator.standard_normal((CHUNKS, ELEMENTS), dtype=np.float32)
    return {f"w{n}": torch.from_numpy(row).to(torch.bfloat16) for n, row in enumerate(rows)}


def _step(state: State, changed: int, generator: np.random.Generator) -> None:
    for n in generator.choice(CHUNKS, changed, replace=False):
        place = int(generator.integers(ELEMENTS - 4))
        state[f"w{n}"].view(torch.int16)[place : place + 4] ^= 1


def load(repo: Repository, ref: str, _: State) -> State:
    return repo.load(ref)


def sync(repo: Repository, ref: str, state: State) -> State:
    live = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    Subscriber(repo).sync(live, to=ref)
    return live


def commit(repo: Repository, ref: str, state: State) -> State:
    changed = {name: tensor.clone() for name, tensor in state.items()}
    _step(changed, 1, np.random.default_rng(1))
    repo.commit(changed, branch=ref)
    return state


def counted(store: MemoryStore, refs: Mapping[str, State]) -> dict[tuple[Use, str], list[Request]]:
    """Use each ref by a handle that has nothing in memory; return the requests."""
    found: dict[tuple[Use, str], list[Request]] = {}
    for use, (ref, state) in product((load, sync, commit), refs.items()):
        if use is commit and not re.fullmatch(r"branch\d", ref):
            continue
        requests = Requests(copy_of(store) if use is commit else store)
        requests.capabilities = store.capabilities
        with casweights.open(requests, cache_size=0) as repo:
            requests.made.clear()
            assert_same_state(use(repo, ref, state), state)
            found[use, ref] = list(requests.made)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_maintenance_before_a_reader_costs_it_a_few_requests_at_most(kind: str, shape: str) -> None:
    """Compared with a store of the same history that nobody has maintained."""
    limits = unmaintained(kind, SHAPES[shape]._replace(night=0))
    original, refs = run_of(kind, SHAPES[shape])
    store = copy_of(original)
    store.capabilities = original.capabilities
    for grace in (REPLACED_GRACE, timedelta(0)):  # the second time, nothing lies aside
        maintain(store, grace)
        for (use, ref), made in counted(store, refs).items():
            assert cost(made, kind) <= limits[use, ref] + MORE, (use, ref, made)


@cache
def unmaintained(kind: str, shape: Shape) -> dict[tuple[Use, str], int]:
    """Return how many requests each use of each ref takes where nobody has maintained the store."""
    store, refs = run_of(kind, shape)
    return {at: cost(made, kind) for at, made in counted(store, refs).items()}


def cost(made: Sequence[Request], kind: str) -> int:
    """Return the number of requests; in a directory, opening a file is what takes time."""
    return len(made if kind == "bucket" else set(made))
