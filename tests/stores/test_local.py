"""Tests of the store in a directory."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from casweights.errors import StoreError
from casweights.stores.local import LocalStore
from casweights.system import staging
from casweights.testing import StoreTests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class TestLocalStore(StoreTests):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        store = LocalStore(tmp_path / "store")
        store.create()
        return store

    @pytest.fixture
    def again(self, store: LocalStore) -> Callable[[], LocalStore]:
        return lambda: LocalStore(store.root)


def test_an_object_is_a_file(tmp_path: Path) -> None:
    LocalStore(tmp_path).put("packs/name", [b"bytes"])
    assert (tmp_path / "packs/name").read_bytes() == b"bytes"


def test_reads_and_deletions_do_not_create_the_directory(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    assert not store.exists("name")
    assert list(store.list()) == []
    store.delete("name")
    assert not store.root.exists()


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("packs/name", [b"bytes"])
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "packs/.hidden").touch()
    assert [info.name for info in store.list()] == ["packs/name"]


def test_drafts_are_deleted_with_the_store_instance(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("name", [b"x"])
    del store
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_drafts_of_a_killed_writer_are_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from casweights.system.staging import Staging; "
        "Staging(Path(sys.argv[1])).new_path().write_bytes(b'half'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob(f"{staging.PREFIX}*/*"))) == 1
    store = LocalStore(tmp_path)
    assert list(store.list()) == []
    store.put("name", [b"x"])
    del store
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_put_raises_if_a_file_is_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "packs").write_bytes(b"in the way")
    store = LocalStore(tmp_path)
    with pytest.raises(StoreError, match="cannot write packs/name"):
        store.put("packs/name", [b"x"])
    assert not store.exists("packs/name")


def test_objects_have_the_times_of_their_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.create()
    store.put("name", [b"data"])
    os.utime(tmp_path / "store" / "name", (7, 7))
    assert [info.created for info in store.list()] == [7_000_000]


def test_names_are_those_of_the_listing_without_a_look_at_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    for name in ("a/b", "a/c/d", "e"):
        store.put(name, [b"x"])
    (tmp_path / "a" / ".draft").write_bytes(b"x")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "e")
    (tmp_path / "a" / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "a" / "folder").symlink_to(tmp_path / "a" / "c")
    os.mkfifo(tmp_path / "a" / "pipe")
    listed = [info.name for info in store.list()]
    assert listed == ["a/b", "a/c/d", "a/link", "e"]
    monkeypatch.setattr("casweights.stores.walk._item", None)
    assert list(store.list_names()) == listed
    assert list(store.list_names("a/")) == listed[:3]
    assert list(store.list_names("a/b")) == ["a/b"]
    assert list(store.list_names("e/")) == list(store.list_names("no/thing")) == []
