"""Tests of what is read together from a store over a network."""

from __future__ import annotations

from dataclasses import replace

import torch

import casweights
from casweights.config import KiB, MiB, StoreConfig
from casweights.stores.memory import MemoryStore
from casweights.stores.readahead import ReadaheadStore
from casweights.testing import CountingStore


def test_a_pack_of_some_hundred_kib_that_few_chains_begin_in_is_read_at_once() -> None:
    """Its index alone would cost a round trip more than the whole pack."""
    inner = CountingStore(MemoryStore())
    inner.capabilities = replace(inner.capabilities, cheap_reads=False)
    random = torch.Generator().manual_seed(1)
    state = {f"w{n}": torch.empty(32 * KiB, dtype=torch.float16) for n in range(4)}
    with casweights.open(inner, create=True, config=StoreConfig(chunk_size=64 * KiB)) as store:
        for _ in range(2):  # the second has other weights, and the header of the first
            for tensor in state.values():
                tensor[:] = torch.rand(32 * KiB, generator=random)
            store.commit(state)
        first, nbytes = [(name, n) for name, n in inner.writes if n > 128 * KiB][-1]
        for _ in range(3):
            for tensor in state.values():
                tensor[torch.randint(32 * KiB, (40,), generator=random)] = 0.5
            store.commit(state)
    inner.reset()
    with casweights.open(ReadaheadStore(inner, MiB)) as store:
        found = store.load("main")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert [n for name, n in inner.reads if name == first] == [nbytes]
