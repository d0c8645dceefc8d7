"""Versions that are functions of others: exports of another type, and sums of two."""

from __future__ import annotations

import functools
from dataclasses import replace
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import casweights
from casweights.config import KiB, StoreConfig
from casweights.events import Reporter
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.histories import step
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.results import CheckoutStats
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=64 * KiB)
SHAPES = {"embed": (700, 128), "up": (256, 384), "norm": (384,), "bias": (128,), "down": (384, 256)}
LISTS = 1500  # bytes of headers, lists of chunks and derived frames, at most


@functools.cache
def full() -> State:
    """Return a model in F32."""
    generator = torch.Generator().manual_seed(1)
    return {n: 0.05 * torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}


def cast(state: State, dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def cut(state: State) -> State:
    """Return a model whose lower halves were cut off."""
    bits = {name: tensor.view(torch.int32) >> 16 for name, tensor in state.items()}
    return {n: b.to(torch.int16).view(torch.bfloat16).view(SHAPES[n]) for n, b in bits.items()}


def tuned(state: State, share: float = 0.05, seed: int = 5) -> State:
    return {n: step(t.flatten(), share, seed).view(t.shape) for n, t in state.items()}


def added(store: MemoryStore, state: State, name: str, **how: str | bool) -> int:
    """Commit a state to a branch, and return the bytes of its frames."""
    with casweights.open(store, create=True, config=CONFIG) as repo:
        before = repo.stats().pack_bytes
        repo.commit(state, branch=name, **how)  # type: ignore[arg-type]
        after = repo.stats().pack_bytes
    with casweights.open(store) as repo:
        assert_same_state(repo.load(name), state)
    return after - before


EXPORTS: dict[str, Callable[[State], State]] = {
    "bf16": lambda state: cast(state, torch.bfloat16),
    "fp16": lambda state: cast(state, torch.float16),
    "cut off": cut,
    "renamed": lambda state: {f"m.{n}": t.bfloat16() for n, t in reversed(state.items())},
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
@pytest.mark.parametrize("parent", [False, True])
def test_an_export_takes_nothing(export: Callable[[State], State], parent: bool) -> None:
    store = MemoryStore()
    added(store, full(), "full")
    how = {"parent": "full"} if parent else {}
    assert added(store, export(full()), "export", **how) <= LISTS


def test_fp8_is_made_from_bf16() -> None:
    store, bf16 = MemoryStore(), cast(full(), torch.bfloat16)
    added(store, bf16, "bf16")
    assert added(store, cast(bf16, torch.float8_e4m3fn), "fp8", parent="bf16") <= LISTS


def test_a_fine_tune_takes_what_it_takes_from_an_export() -> None:
    export = cast(full(), torch.bfloat16)
    alone, both = MemoryStore(), MemoryStore()
    added(alone, full(), "full")
    added(both, full(), "full")
    added(both, export, "export")
    reference = added(both, tuned(export), "tuned", parent="export")
    assert added(alone, tuned(export), "tuned") <= 1.05 * reference + LISTS


def test_a_full_model_takes_its_lower_half_beyond_an_export() -> None:
    store = MemoryStore()
    added(store, cast(full(), torch.bfloat16), "export")
    nbytes = sum(tensor.nbytes for tensor in full().values())
    assert added(store, full(), "full") <= 0.52 * nbytes


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_a_sum_of_two_takes_nothing(share: float) -> None:
    store, one = MemoryStore(), cast(full(), torch.bfloat16)
    other = {n: (1.02 * tensor.float()).bfloat16() for n, tensor in tuned(one, 0.6).items()}
    added(store, one, "one")
    added(store, other, "other")
    first, second = (torch.tensor(weight) for weight in (1 - share, share))
    both = {n: (first * one[n].float() + second * other[n].float()).bfloat16() for n in one}
    assert added(store, both, "both") <= LISTS


def test_a_step_of_an_export_is_a_difference_from_the_export_before() -> None:
    store, export = MemoryStore(), cast(full(), torch.bfloat16)
    added(store, full(), "full")
    added(store, export, "export")
    with casweights.open(store) as repo:
        before = repo.stats().encodings["derived"]
        repo.commit(tuned(export), branch="export")
        assert repo.stats().encodings["derived"] == before


class Fetched(Reporter):
    """Keeps the bytes that the last checkout read."""

    nbytes = 0

    def checked_out(self, stats: CheckoutStats) -> None:
        self.nbytes = stats.fetched_bytes


def read_bytes(store: MemoryStore, name: str) -> int:
    reporter = Fetched()
    with casweights.open(store, reporter=reporter) as repo, TemporaryDirectory() as folder:
        repo.checkout(name, folder)
    assert reporter.nbytes
    return reporter.nbytes


def test_what_is_calculated_is_read_within_its_bound() -> None:
    """A reader of an export reads what it is made from, and at most half of a whole beyond."""
    store, export = MemoryStore(), cast(full(), torch.bfloat16)
    added(store, full(), "full")
    added(store, export, "export")
    whole = MemoryStore()
    added(whole, export, "export")
    own = read_bytes(whole, "export")
    state = export
    assert 2 * own < read_bytes(store, "export") <= 2.55 * own
    for number in range(12):
        state = tuned(state, 0.2, number)
        added(store, state, "export")
        assert read_bytes(store, "export") <= 3.25 * own


def test_a_standalone_version_is_no_function_of_others() -> None:
    """Neither is one whose parent is, nor any of a store that says so."""
    store, alone, export = MemoryStore(), MemoryStore(), cast(full(), torch.bfloat16)
    with casweights.open(alone, create=True, config=replace(CONFIG, standalone=True)) as repo:
        assert repo.config.standalone
    for place in (store, alone):
        added(place, full(), "full")
    whole = added(MemoryStore(), export, "export")
    assert added(alone, export, "export") > 0.9 * whole
    assert added(store, tuned(export), "other", parent="full", standalone=True) > 0.9 * whole
    assert read_bytes(store, "other") <= 1.05 * whole
    added(store, export, "export")
    assert read_bytes(store, "export") > 1.5 * whole
    assert added(store, tuned(export, 0.02), "export", standalone=True) > 0.9 * whole
    assert read_bytes(store, "export") <= 1.05 * whole
    with casweights.open(alone) as repo:
        repo.repack(grace=timedelta(0))
        assert "derived" not in repo.stats().encodings


def test_a_repack_of_a_standalone_store_ends_functions_of_others() -> None:
    store, alone, export = MemoryStore(), MemoryStore(), cast(full(), torch.bfloat16)
    added(store, full(), "full")
    added(store, export, "export")
    config = replace(CONFIG, standalone=True)
    with (
        casweights.open(store) as repo,
        casweights.open(alone, create=True, config=config) as other,
    ):
        repo.push(other, ["full", "export"])
        assert "derived" in other.stats().encodings
        other.repack(grace=timedelta(0))
        assert "derived" not in other.stats().encodings
    assert read_bytes(alone, "export") <= 1.05 * added(MemoryStore(), export, "export")


def test_what_it_was_made_from_goes_when_nothing_else_needs_it() -> None:
    store, export = MemoryStore(), cast(full(), torch.bfloat16)
    added(store, full(), "full")
    added(store, export, "export")
    with casweights.open(store) as repo:
        before = repo.stats().pack_bytes
        repo.delete_branch("full")
        for _ in range(3):
            repo.gc(apply=True, grace=timedelta(0), confirm=str(store.url))
        after = repo.stats().pack_bytes
    with casweights.open(store) as repo:
        assert_same_state(repo.load("export"), export)
        assert repo.verify().problems == ()
    assert after < 0.5 * before


def test_a_push_and_a_repack_keep_it() -> None:
    store, target, export = MemoryStore(), MemoryStore(), cast(full(), torch.bfloat16)
    added(store, full(), "full")
    added(store, export, "export")
    with casweights.open(store) as repo:
        before = repo.stats().pack_bytes
        with casweights.open(target, create=True, config=CONFIG) as other:
            repo.push(other, ["export"])
        repo.repack(grace=timedelta(0))
        assert repo.stats().pack_bytes <= 1.01 * before
    for place in (store, target):
        with casweights.open(place) as repo:
            assert repo.verify().problems == ()
            assert_same_state(repo.load("export"), export)


dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])


@settings(max_examples=examples(6), deadline=None)
@given(st.lists(st.tuples(dtypes, st.sampled_from([0, 0.01, 0.3])), min_size=2, max_size=4))
def test_any_chain_of_casts_comes_back(casts: list[tuple[torch.dtype, float]]) -> None:
    store, state = MemoryStore(), full()
    for number, (dtype, share) in enumerate(casts):
        state = cast(state, dtype)
        if share and dtype == torch.bfloat16:
            state = tuned(state, share, number)
        added(store, state, f"b{number}")
    with casweights.open(store) as repo:
        assert repo.verify().problems == ()
