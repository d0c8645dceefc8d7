"""What a replica that follows a branch in a bucket requests and receives for one step."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import Subscriber
from casweights.config import KiB, MiB, StoreConfig
from casweights.format import names
from casweights.stores.hub.store import HubStore
from casweights.testing.hub import LocalHub
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, blur, step, weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights import Repository
    from casweights.stores.base import ObjectStore
    from tests.histories import State

    Follow = Callable[[], object]

CHUNKS = 144
CONFIG = StoreConfig(chunk_size=CHUNK)
FRAMING = 4 * KiB  # bytes of the Hub's answers around those of the object


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        yield hub


def follow_by_load(repo: Repository, live: State) -> Follow:
    """Load each version, with the chunks of the one before in memory."""
    live |= repo.load("heads/main")
    return lambda: live.update(repo.load("heads/main"))


def follow_by_sync(repo: Repository, live: State) -> Follow:
    """Bring live tensors to each version."""
    live |= {"w": weights(CHUNKS, seed=1)}
    subscriber = Subscriber(repo)
    subscriber.sync(live)
    return subscriber.sync


def size_of_last_step(store: ObjectStore) -> int:
    return list(store.list(names.HEADS))[-1].size


@pytest.mark.parametrize("begin", [follow_by_load, follow_by_sync])
@pytest.mark.parametrize(
    ("change", "least", "most", "reads"),
    [
        (partial(step, density=0.01), 0, 256 * KiB, 1),
        (partial(step, density=0.15), 256 * KiB, 2 * MiB, 1),
        (partial(blur, amount=0.01), 2 * MiB, 8 * MiB, 2),
    ],
    ids=["small", "medium", "large"],
)
def test_a_follower_receives_a_step_once_in_few_reads(
    hub: LocalHub,
    begin: Callable[[Repository, State], Follow],
    change: Callable[..., torch.Tensor],
    least: int,
    most: int,
    reads: int,
) -> None:
    """One listing of the branch, and one read of the step; two if it is large."""
    stores = [HubStore("me/weights", "run", endpoint=hub.url) for _ in range(2)]
    state, live = {"w": weights(CHUNKS)}, dict[str, torch.Tensor]()
    with (
        casweights.open(stores[0], create=True, config=CONFIG) as trainer,
        casweights.open(stores[1], cache_size=4 * CHUNKS * CHUNK) as replica,
    ):
        trainer.commit(state)
        follow = begin(replica, live)
        state = {"w": change(state["w"], seed=2)}
        trainer.commit(state)
        hub.reset_counters()
        follow()
        found = hub.counters()
        assert_same_state(live, state)
    size = size_of_last_step(stores[1])
    assert least < size <= most
    assert found.bytes_out <= 1.1 * size + FRAMING
    assert found.requests == {"tree": 1, "reconstruction": reads, "xorb_read": reads}
