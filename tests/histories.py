"""Small versions as training makes them: a few elements move by a unit in the last place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import casweights
from casweights.config import KiB
from casweights.format import names
from casweights.testing.states import assert_same_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore

CHUNK = 64 * KiB
ELEMENTS = CHUNK // 2  # of a chunk, in bf16

State = dict[str, torch.Tensor]


def weights(chunks: int, seed: int = 0) -> torch.Tensor:
    """Return random weights in bf16 that fill some chunks."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(chunks * ELEMENTS, dtype=np.float32) * 0.02
    return torch.from_numpy(values).to(torch.bfloat16)


def step(tensor: torch.Tensor, density: float, seed: int) -> torch.Tensor:
    """Return a copy of weights in which a share of `density` moved up or down."""
    generator = np.random.default_rng(seed)
    bits = tensor.view(torch.int16).numpy().copy()
    moved = np.flatnonzero(generator.random(len(bits), dtype=np.float32) < density)
    bits[moved] += generator.choice([-1, 1], len(moved)).astype(np.int16)
    return torch.from_numpy(bits).view(torch.bfloat16)


def blur(tensor: torch.Tensor, amount: float, seed: int) -> torch.Tensor:
    """Return a copy of weights with noise in all of them, as a multiple of their deviation."""
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal(tensor.numel(), dtype=np.float32) * amount
    values = tensor.float()
    return (values + torch.from_numpy(noise) * values.std()).to(torch.bfloat16)


def history(versions: int, density: float, chunks: int = 2, seed: int = 0) -> Iterator[State]:
    """Yield the states of consecutive steps."""
    tensor = weights(chunks, seed)
    for n in range(versions):
        yield {"w": tensor}
        tensor = step(tensor, density, seed + n + 1)


def pack_names(store: ObjectStore) -> set[str]:
    """Return the names of all packs of a store."""
    return {info.name for info in store.list(names.PACKS)}


def check_versions(store: ObjectStore, versions: Mapping[SnapshotId, State]) -> None:
    """Check that a store is sound and that its versions are these states."""
    with casweights.open(store) as repo:
        assert repo.verify().problems == ()
        for version, state in versions.items():
            assert_same_state(repo.load(version), state)
