"""Runs of many steps: the memory for knowledge of them is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import casweights
from casweights import Publisher, Subscriber
from casweights.config import StoreConfig
from casweights.database import index, snapshots
from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tests.histories import CHUNK, history

if TYPE_CHECKING:
    import pytest

    from casweights.stores.base import ObjectStore

STEPS = 120


class RemoteStore(CountingStore):
    """A store that claims to be remote."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.capabilities = Capabilities(
            exclusive_create=True, listing_lags=True, cheap_reads=False
        )


def known_frames(repo: casweights.Repository) -> int:
    known = repo.database.index
    return sum(len(known.frames(chunk)) for chunk in known)


def test_knowledge_of_old_versions_is_dropped_and_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index, "_SPARE_FRAMES", 8)
    objects = MemoryStore()
    casweights.open(objects, create=True, config=StoreConfig(chunk_size=CHUNK)).close()
    states = list(history(STEPS, 0.01, chunks=1))
    trainer, replica = (casweights.open(RemoteStore(objects)) for _ in range(2))
    live = {"w": torch.zeros_like(states[0]["w"])}
    versions, most = [], 0
    with trainer, replica, Publisher(trainer) as publisher, Subscriber(replica) as subscriber:
        for state in states:
            publisher.publish(state)
            version = publisher.wait()
            assert version is not None
            versions.append(version.id)
            subscriber.sync(live)
            most = max(most, known_frames(trainer), known_frames(replica))
        assert most < STEPS * 2 / 3
        for n in (STEPS - 1, 40, 3, 100):
            assert torch.equal(trainer.load(versions[n])["w"], states[n]["w"])
            subscriber.sync(to=versions[n])
            assert torch.equal(live["w"], states[n]["w"])
        publisher.publish(states[7])  # stored long ago
        assert trainer.verify().problems == ()
    with casweights.open(objects) as repo:
        assert torch.equal(repo.load("main")["w"], states[7]["w"])


def test_lists_of_chunks_of_old_versions_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_STRUCTURE_LEAST", 64)  # bytes
    objects = MemoryStore()
    casweights.open(objects, create=True, config=StoreConfig(chunk_size=CHUNK)).close()
    with (
        casweights.open(objects) as trainer,
        casweights.open(objects) as replica,
        Publisher(trainer) as publisher,
        Subscriber(replica) as subscriber,
    ):
        lists = []
        for state in history(20, 0.01, chunks=3):
            publisher.publish(state)
            version = publisher.wait()
            assert version is not None
            lists.append(list(version.structure())[-1])
            subscriber.sync({"w": torch.zeros_like(state["w"])})
        for repo in (trainer, replica):
            held = [
                n for n, chunk in enumerate(lists) if chunk in repo.database.snapshots.structure
            ]
            assert 0 < len(held) <= 12, "a list has 96 bytes, and room is made for four versions"
