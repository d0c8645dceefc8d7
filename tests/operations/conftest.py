"""Fixtures: a store with several branches, and an empty store to push to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tests.histories import history, step, weights
from tests.operations.transfers import Versions, create

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository


@pytest.fixture
def versions(repo: Repository) -> Versions:
    """Two branches of differences, a third branch that resembles them, and a tag."""
    states = list(history(5, 0.01, chunks=3))
    found = {repo.commit(state).id: state for state in states}
    fork = {"w": step(states[2]["w"], 0.02, 70)}
    found[repo.commit(fork, branch="fork", parent="main~2").id] = fork
    alike = {"w": step(states[1]["w"], 0.02, 71), "more": weights(1, seed=72)}
    found[repo.commit(alike, branch="alike").id] = alike
    repo.tag("v1", "main~3")
    return found


@pytest.fixture(params=["memory", "local"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> CountingStore:
    """An empty store that counts its reads and writes."""
    kind = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "target")
    store = CountingStore(kind)
    create(store)
    store.reset()
    return store
