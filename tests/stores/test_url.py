"""From URLs to drivers."""

from __future__ import annotations

from pathlib import Path

import pytest

from casweights.errors import InvalidInputError, UnsupportedError
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.url import open_object_store


def test_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("store", "./store", Path("store"), tmp_path / "store", f"file://{tmp_path}/store"):
        store = open_object_store(url)
        assert isinstance(store, LocalStore)
        assert store.root == tmp_path / "store"
        assert store.url == str(tmp_path / "store")


def test_memory() -> None:
    assert isinstance(open_object_store("memory://"), MemoryStore)


def test_other_schemes() -> None:
    with pytest.raises(UnsupportedError, match="s3://"):
        open_object_store("s3://bucket/prefix")


def test_nothing() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        open_object_store("")
