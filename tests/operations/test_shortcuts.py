"""Chains of many small versions: how many packs they are spread over, and what readers read."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.format import names
from casweights.ids import PackId
from casweights.operations.shortcuts import Schedule
from casweights.stores.memory import MemoryStore
from casweights.stores.readahead import ReadaheadStore
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, State, step, weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from casweights import Snapshot

CONFIG = StoreConfig(chunk_size=CHUNK)
DENSITIES = {"a": 0.004, "b": 0.01, "c": 0.02}  # tensors of one chunk, which move at other rates
MOST_PACKS = 8  # whole chunks, three steps, and a shortcut of each level that this run reaches
SHORT, LONG = 19, 180  # versions


def run(versions: int) -> Iterator[State]:
    state = {name: weights(1, seed=n) for n, name in enumerate(DENSITIES)}
    for n in range(versions):
        yield state
        state = {
            name: step(old, DENSITIES[name], 10 * n + len(name)) for name, old in state.items()
        }


class Remote(MemoryStore):
    """A store in memory whose reads count as round trips over a network."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = replace(self.capabilities, cheap_reads=False)


class History:
    """A run, committed to a store over a network.

    Attributes:
        packs: Number of packs that each version needs.
        read_bytes: Stored bytes of the chains of each version.
    """

    def __init__(self, versions: int) -> None:
        self.store, self.states = Remote(), list(run(versions + 1))
        self.packs: list[int] = []
        self.read_bytes: list[int] = []
        with casweights.open(self.store, create=True, config=CONFIG, cache_size=1 << 20) as repo:
            for state in self.states[:-1]:
                self._add(repo, repo.commit(state))

    def _add(self, repo: casweights.Repository, version: Snapshot) -> None:
        chains = [repo._db.index.chain(chunk) for chunk in version.stored_chunks()]
        assert None not in chains
        self.read_bytes.append(sum(chain.nbytes for chain in chains if chain))
        self.packs.append(len(repo._db.snapshots.load_stored(version.id).table.packs))

    def reads(self, verb: str, folder: Path) -> list[str]:
        """Return the names of the objects that a fresh process reads, in order."""
        objects = CountingStore(self.store)
        with casweights.open(ReadaheadStore(objects, 1 << 25)) as repo:
            objects.reset()
            if verb == "commit":
                repo.commit(self.states[-1])
            else:
                repo.checkout("main", folder)
        return [name for name, _ in objects.reads]


@pytest.fixture(scope="module")
def long() -> History:
    return History(LONG)


def test_versions_need_few_packs_however_long_their_history_is(long: History) -> None:
    assert max(long.packs) <= MOST_PACKS
    assert max(long.read_bytes) <= 1.5 * long.read_bytes[0]


@pytest.mark.parametrize("verb", ["commit", "checkout"])
def test_a_fresh_process_reads_each_pack_once(verb: str, tmp_path: Path) -> None:
    """Also a commit, which reads the indexes of packs before it knows which chunks have changed."""
    reads = {}
    for versions in (SHORT, LONG):
        made = History(versions)
        found = made.reads(verb, tmp_path / str(versions))
        packs = [name for name in found if name.startswith(names.PACKS)]
        assert sorted(packs) == sorted(set(packs))
        reads[versions] = len(found)
        if verb == "commit":
            with casweights.open(made.store) as repo:
                assert_same_state(repo.load("main"), made.states[-1])
    assert reads[LONG] <= MOST_PACKS + 1 <= 1.5 * reads[SHORT] + 3


def pack(number: int) -> PackId:
    return PackId(hashlib.sha256(b"%d" % number).digest())


def packs(*numbers: int) -> list[PackId]:
    return [pack(number) for number in numbers]


def test_shortcuts_are_the_digits_of_a_number() -> None:
    """A shortcut replaces those of lower levels, so a chain has one of each level at most."""
    shortcuts: list[int] = []  # the versions of the chain with shortcuts, in order
    for number in range(1, 5000):
        steps = packs(*range(4 * ((number - 1) // 4) + 1, number))
        passed = Schedule(number, lambda _: 3 * KiB).passed(steps)
        assert (passed is not None) == (number % 4 == 0)
        if passed is not None:
            assert passed <= len(shortcuts)
            shortcuts = [*shortcuts[: len(shortcuts) - passed], number]
            digits = [(number // 4) // 4**level % 4 for level in range(6)]
            assert len(shortcuts) == sum(digit > 0 for digit in digits)
            assert all(later - earlier <= earlier * 4 for earlier, later in pairwise(shortcuts))


@pytest.mark.parametrize(
    ("size", "every"),
    [(1, 4), (8 * KiB, 4), (8 * KiB + 1, 8), (16 * KiB, 8)],
)
def test_the_distance_of_shortcuts_grows_with_the_size_of_a_version(size: int, every: int) -> None:
    due = [n for n in range(1, 65) if is_due(n, size, packs(*range(1, every)))]
    assert due == list(range(every, 65, every))


@pytest.mark.parametrize("size", [0, 16 * KiB + 1, 64 << 20])
def test_large_versions_and_packs_of_unknown_size_call_for_no_shortcut(size: int) -> None:
    assert not any(is_due(n, size, packs(*range(60))) for n in range(1, 65))
    assert not any(Schedule(n, lambda _: size).is_round(packs(1, 2)) for n in range(0, 5000, 64))


def test_steps_in_one_pack_count_once() -> None:
    """After packs were merged, a long chain needs few of them."""
    assert not is_due(7, KiB, packs(*[1] * 40))
    assert is_due(7, KiB, packs(*range(8)))  # a chunk that missed its turns


def is_due(number: int, size: int, steps: Sequence[PackId]) -> bool:
    return Schedule(number, lambda _: size).passed(steps) is not None


def test_many_chains_end_in_the_same_versions() -> None:
    rounds = [n for n in range(1, 2000) if Schedule(n, lambda _: KiB).is_round(packs(1, 2, 3))]
    assert rounds == list(range(256, 2000, 256))


def test_a_tensor_that_changes_at_every_other_step_keeps_short_chains() -> None:
    """It has no chunk in the versions in which shortcuts are due."""
    store, state = MemoryStore(), {"w": weights(1), "rare": weights(1, seed=1)}
    with casweights.open(store, create=True, config=CONFIG, cache_size=1 << 20) as repo:
        for n in range(1, 100):
            version = repo.commit(state)
            table = repo._db.snapshots.load_stored(version.id).table
            assert len(table.packs) <= 2 * MOST_PACKS
            state = {
                "w": step(state["w"], 0.01, n),
                "rare": step(state["rare"], 0.01, n) if n % 4 in (0, 2) else state["rare"],
            }
        assert torch.equal(repo.load(version)["w"].isnan(), state["w"].isnan())
