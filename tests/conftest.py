"""Settings and fixtures for all tests."""

from __future__ import annotations

import gc
import os
import tempfile
from contextlib import nullcontext
from typing import TYPE_CHECKING

import hypothesis
import pytest

import casweights
from casweights.config import KiB, StoreConfig
from casweights.database import nearby
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from tests import lengths
from tests.disks import wait_for_no_disk
from tests.large_versions import packs_apart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights import Repository

# Deterministic in the suite, so that a failure here is a failure everywhere; no deadline, as
# machines differ.
hypothesis.settings.register_profile(
    "casweights",
    max_examples=lengths.examples(50),
    derandomize=not lengths.LONG,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.data_too_large,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("casweights")


wait_for_no_disk()

# Set before any import of huggingface_hub, so that tests neither read nor change the user's files.
_home = tempfile.TemporaryDirectory(prefix="casweights-tests-")
os.environ |= {"HF_HOME": _home.name, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": "hf_test"}
for _name in ("HF_ENDPOINT", "HF_XET_CACHE", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_ASSETS_CACHE"):
    os.environ.pop(_name, None)


def pytest_collection_finish() -> None:
    """Exclude all current objects from garbage collections, which hundreds of tests request.

    The tests themselves and torch make up most of the heap.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def objects() -> CountingStore:
    """An object store in memory that counts reads and writes."""
    return CountingStore(MemoryStore())


@pytest.fixture
def repo(objects: CountingStore) -> Iterator[Repository]:
    """A repository over `objects`, with the smallest chunks, so that tensors have several."""
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open(objects, create=True, config=config, workers=2) as repository:
        yield repository


@pytest.fixture(name="packs_apart")
def _packs_apart() -> Iterator[None]:
    """Commits of the test write packs and bare snapshots."""
    with packs_apart():
        yield


@pytest.fixture(params=["carried", "apart"])
def both_forms(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test runs twice: with snapshots that carry frames, and with packs and bare snapshots."""
    with packs_apart() if request.param == "apart" else nullcontext():
        yield


@pytest.fixture
def frames_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let directories read small frames without their neighbours, as tests count bytes."""
    monkeypatch.setattr(nearby, "_SMALL", -1)
