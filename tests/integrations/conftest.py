"""The adapter for vLLM, and a store for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import casweights
from tests.integrations import vllm_parts
from tests.integrations.fused_model import Model
from tests.integrations.vllm_worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository


@pytest.fixture(params=["wheel", "stand-in"])
def adapter(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`casweights.integrations.vllm`, imported again for each test."""
    if request.param == "wheel" and not vllm_parts.PARTS.is_dir():
        pytest.skip("no modules of vLLM: run python -m tests.integrations.vllm_parts")
    with vllm_parts.wheel() if request.param == "wheel" else vllm_parts.stand_in():
        import casweights.integrations.vllm

        yield casweights.integrations.vllm


@pytest.fixture
def path(tmp_path: Path) -> str:
    casweights.open(tmp_path / "store", create=True).close()
    return str(tmp_path / "store")


@pytest.fixture
def local_repo(path: str) -> Iterator[Repository]:
    with casweights.open(path) as repo:
        yield repo


@pytest.fixture
def worker(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    worker = Worker(adapter, Model(), monkeypatch)
    yield worker
    worker.engine.shutdown()
