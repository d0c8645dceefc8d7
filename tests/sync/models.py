"""Replicas for tests: the content and the memory of live models, and versions to follow."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from casweights import ErrorCode, Reporter, StoreError
from casweights.sync.models import named_tensors, state_of
from casweights.testing.states import tensor_bits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from casweights import Repository, SnapshotId
    from casweights.results import PollStats, SyncStats
    from tests.histories import State


class Tied(torch.nn.Module):
    """A module with the state of a small language model."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.embed = torch.nn.Embedding(40, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.head = torch.nn.Linear(8, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(tokens)))  # type: ignore[no-any-return]


class Recorder(Reporter):
    """Keeps the events of live sync."""

    def __init__(self) -> None:
        self.polls: list[PollStats] = []
        self.syncs: list[SyncStats] = []

    def polled(self, stats: PollStats) -> None:
        self.polls.append(stats)

    def synced(self, stats: SyncStats) -> None:
        self.syncs.append(stats)


def memory_of(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """All bytes of a tensor's storage; torch does not count writes to them."""
    storage = tensor.detach().untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()  # type: ignore[call-overload, no-any-return, unused-ignore]


def tensors_of(model: Mapping[str, Any] | torch.nn.Module) -> dict[str, torch.Tensor]:
    return named_tensors(state_of(model))


def bits(model: Mapping[str, Any] | torch.nn.Module) -> dict[str, bytes]:
    """The bits of a model's tensors, by name."""
    return {name: tensor_bits(tensor) for name, tensor in tensors_of(model).items()}


def places(model: Mapping[str, Any] | torch.nn.Module) -> dict[str, int]:
    """The addresses of a model's tensors, by name."""
    return {name: tensor.data_ptr() for name, tensor in tensors_of(model).items()}


def scramble(model: Mapping[str, Any] | torch.nn.Module, seed: int = 9) -> None:
    """Put random bytes into all memory of a model."""
    generator = np.random.default_rng(seed)
    for tensor in tensors_of(model).values():
        memory = memory_of(tensor)
        memory[:] = generator.integers(0, 256, len(memory), np.uint8)


def replica(state: Mapping[str, Any], seed: int = 9) -> dict[str, Any]:
    """A model with the same ties and layouts as this one, and other content."""
    twin = copy.deepcopy(dict(state))
    scramble(twin, seed)
    return twin


def commit_all(repo: Repository, states: list[State], branch: str = "main") -> list[SnapshotId]:
    return [repo.commit(state, branch=branch).id for state in states]


def flip(tensor: torch.Tensor, place: int) -> None:
    """Change an element without torch counting the write."""
    memory_of(tensor)[place * tensor.element_size()] ^= 1


def lose_connection() -> NoReturn:
    raise StoreError(ErrorCode.UNREACHABLE, "cannot read: the network is gone")
