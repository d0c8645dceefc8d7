"""Tests of the URLs of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from casweights.errors import InvalidInputError, UnsupportedError
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.url import open_object_store


def test_paths_and_file_urls_open_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("store", "./store", Path("store"), tmp_path / "store", f"file://{tmp_path}/store"):
        store = open_object_store(url)
        assert isinstance(store, LocalStore)
        assert store.root == tmp_path / "store"
        assert store.url == str(tmp_path / "store")


def test_the_memory_url_opens_a_store_in_memory() -> None:
    assert isinstance(open_object_store("memory://"), MemoryStore)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="s3://"):
        open_object_store("s3://bucket/prefix")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("s3://bucket/prefix", "s3:// stores are not supported"),
        ("hf://me/weights", "hf://me/weights is not in a bucket"),
        ("hf://datasets/me/weights", "hf://datasets/me/weights is not in a bucket"),
        ("hf://buckets/me", "hf://buckets/me names no bucket"),
    ],
)
def test_the_error_for_a_url_of_no_store_lists_all_kinds_of_stores(url: str, what: str) -> None:
    with pytest.raises((InvalidInputError, UnsupportedError)) as caught:
        open_object_store(url)
    assert str(caught.value) == (
        f"{what}: give the path of a directory, hf://buckets/NAMESPACE/NAME[/FOLDER] for a bucket "
        "of the Hub, or memory:// for a store in memory"
    )


def test_an_empty_url_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        open_object_store("")
