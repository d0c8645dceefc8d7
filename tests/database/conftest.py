"""Stores of all kinds, opened with the right to delete objects or without it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import KiB, StoreConfig
from casweights.stores.hub.store import HubStore
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.testing.hub import LocalHub
from tests.add_only import AddOnly
from tests.copying_bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.stores.base import ObjectStore

    # Makes a store of a kind; what it returns opens that store with a token.
    MakeStore = Callable[[str], Callable[[str], Repository]]

CONFIG = StoreConfig(chunk_size=64 * KiB)


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub(tokens={"writer": "write", "adder": "add"}) as hub:
        hub.create_bucket("me/weights")
        yield hub


@pytest.fixture
def make_store(hub: LocalHub, tmp_path: Path) -> MakeStore:
    """A function that makes a store of a kind, and returns one that opens it with a token."""
    numbers = itertools.count()

    def make(kind: str) -> Callable[[str], Repository]:
        number, config, objects = next(numbers), CONFIG, None
        if kind == "git":
            config = StoreConfig(chunk_size=64 * KiB, refs=f"datasets/me/{tmp_path.name}{number}")
        elif kind != "hub":
            objects = _local(kind, tmp_path / str(number))

        def reach(token: str) -> ObjectStore:
            if objects is None:
                prefix = f"{tmp_path.name}-{number}"
                return RetryStore(HubStore("me/weights", prefix, endpoint=hub.url, token=token))
            return AddOnly(objects) if token == "adder" else objects

        casweights.open(reach("writer"), create=True, config=config).close()
        return lambda token: casweights.open(reach(token), workers=1)

    return make


def _local(kind: str, folder: Path) -> ObjectStore:
    if kind == "directory":
        return LocalStore(folder)
    return Bucket() if kind == "bucket" else MemoryStore()
