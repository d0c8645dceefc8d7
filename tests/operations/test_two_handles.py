"""What an open handle knows of packs may be out of date: others delete and rewrite them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tests.findings import Remote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from casweights import Repository
    from casweights.stores.base import ObjectStore

pytestmark = pytest.mark.usefixtures("packs_apart")

CONFIG = StoreConfig(chunk_size=64 * KiB)


def rows(seed: int) -> torch.Tensor:
    return torch.randn(4, 16 * KiB, generator=torch.Generator().manual_seed(seed))


def delete_packs(objects: ObjectStore) -> None:
    """Delete all packs by name, as a clean-up job does."""
    for info in list(objects.list("packs/")):
        objects.delete(info.name)


def repack(objects: ObjectStore) -> None:
    with casweights.open(objects) as repo:
        repo.repack(compression="small")


def commit(repo: Repository, state: dict[str, torch.Tensor]) -> None:
    repo.commit(state, branch="other")


def commit_on_top(repo: Repository, state: dict[str, torch.Tensor]) -> None:
    repo.commit({"x": torch.zeros(9)}, branch="other")
    repo.commit(state, branch="other")


def commit_a_difference(repo: Repository, state: dict[str, torch.Tensor]) -> None:
    near = {name: tensor.clone() for name, tensor in state.items()}
    near["w"][0, 0] += 1
    repo.commit(near, branch="near")
    repo.commit(state, branch="other")


def publish(repo: Repository, state: dict[str, torch.Tensor]) -> None:
    with casweights.Publisher(repo, "other") as publisher:
        publisher.publish(state)


class Asked(CountingStore):
    """Counts requests that look up whether objects exist."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.asked = 0

    def present(self, names: Iterable[str]) -> set[str]:
        self.asked += 1
        return self.inner.present(names)


@pytest.mark.parametrize("loss", [delete_packs, repack])
@pytest.mark.parametrize("verb", [commit, commit_on_top, commit_a_difference, publish])
@pytest.mark.parametrize("remote", [False, True])
def test_no_version_relies_on_a_pack_that_another_handle_has_deleted(
    loss: Callable[[ObjectStore], None],
    verb: Callable[[Repository, dict[str, torch.Tensor]], None],
    remote: bool,
) -> None:
    objects: ObjectStore = Remote(MemoryStore()) if remote else MemoryStore()
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        repo.commit({"w": rows(0)}, branch="first")
        loss(objects)
        verb(repo, {"w": rows(0)})
    with casweights.open(objects) as repo:
        assert repo.load("other")["w"].equal(rows(0))


def test_packs_that_the_head_names_are_not_looked_up_behind_a_network() -> None:
    objects = Asked(Remote(MemoryStore()))
    state = {"w": rows(0)}
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        repo.commit(state)
        for step in range(5):
            state["w"][step % 4, 0] += 1
            repo.commit(state)
        assert objects.asked == 0
        repo.commit({"w": rows(1)}, branch="other")
        repo.commit({"w": rows(0), "v": rows(1)}, branch="third")
        assert objects.asked == 2  # for the header of the one, and the tensor of the other
