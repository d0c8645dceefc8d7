"""The end of a publisher: it waits, keeps its error, and stays closed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import Publisher
from casweights.errors import ClosedError
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.sync.states import PATIENCE, Trouble, model, open_store

if TYPE_CHECKING:
    from pathlib import Path


def test_leaving_the_block_waits_and_keeps_its_error() -> None:
    objects, state = Trouble(), model()

    def train(step: int) -> None:
        with Publisher(store) as run:
            run.publish(state, step=step)
            raise RuntimeError("of the trainer")

    with open_store(objects) as store:
        with pytest.raises(RuntimeError, match="of the trainer"):
            train(0)
        assert store.snapshot("main").metadata == {"step": 0}
        objects.fail("put", "snapshots/")
        with pytest.raises(RuntimeError, match="of the trainer") as caught:
            train(1)
        assert ["the network is gone" in note for note in caught.value.__notes__] == [True]


def test_closing_again_does_nothing_and_publishing_raises() -> None:
    with open_store(MemoryStore()) as store:
        run = Publisher(store)
        run.close()
        run.close()
        with pytest.raises(ClosedError, match="was closed"):
            run.publish(model())
        assert run.version is None
        assert store.branches() == {}


def test_a_process_that_ends_without_closing_leaves_valid_versions(tmp_path: Path) -> None:
    code = """
import sys, torch, casweights
casweights.open(sys.argv[1], create=True).close()
run = casweights.Publisher(sys.argv[1])
state = {"w": torch.arange(100_000)}
run.publish(state, step=0)
run.wait()
state["w"] += 1
run.publish(state, step=1)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=PATIENCE)
    with casweights.open(tmp_path) as store:
        for version in store.log():
            step = version.metadata["step"]
            assert_same_state(store.load(version), {"w": torch.arange(100_000) + step})
        assert not store.verify().problems
