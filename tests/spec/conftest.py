"""Fixtures: a store, and the independent reader as a module."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import StoreConfig
from tests.spec.readers import CONTENT, SMALL_CHUNKS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from casweights import Repository


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    """The reader as a module in this process, for tests that call it many times."""
    return importlib.import_module("tools.spec.reader")


@pytest.fixture
def carrying(tmp_path: Path) -> Iterator[Repository]:
    """A store in ``store`` with one version, which has frames of every baseless encoding."""
    config = StoreConfig(**SMALL_CHUNKS)
    with casweights.open(tmp_path / "store", create=True, config=config) as repository:
        repository.commit(CONTENT)
        assert set(repository.stats().encodings) == {"raw", "zstd", "planes"}
        yield repository


@pytest.fixture
def store(packs_apart: None, carrying: Repository) -> Repository:
    """The same with a pack of its own."""
    return carrying
