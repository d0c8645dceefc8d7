"""Objects of a newer casweights are refused as newer, by name, and never called damaged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import ErrorCode, UnsupportedError
from casweights.format import names
from casweights.format.envelope import FORMAT_VERSION, PREFIX_SIZE
from casweights.format.hashing import CHECKSUM_SIZE, blake3_256, checksum
from casweights.format.pack import TRAILER_SIZE, index_span
from casweights.format.snapshot import end_span
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights import Repository

NEWER = FORMAT_VERSION + 1


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"weights")
    objects = MemoryStore()
    with casweights.open(objects, create=True) as repo:
        repo.tag("v1", repo.commit(tmp_path / "model"))
    return objects


def replace(store: MemoryStore, name: str, data: bytes, new_name: str | None = None) -> None:
    store.delete(name)
    store.put(new_name or name, [data])


def newer_prefix(data: bytes) -> bytes:
    return data[:5] + bytes((NEWER,)) + data[6:]


def make_snapshot_newer(store: MemoryStore, name: str) -> None:
    data = newer_prefix(store.get(name))
    start, stop = end_span(data[-TRAILER_SIZE:], len(data), name)
    total = checksum(data[:PREFIX_SIZE] + data[start:stop])
    replace(store, name, data[:stop] + total + data[-TRAILER_SIZE:])


def make_newer(store: MemoryStore, name: str) -> None:
    body = newer_prefix(store.get(name))[:-CHECKSUM_SIZE]
    replace(store, name, body + checksum(body))


def make_pack_newer(store: MemoryStore) -> str:
    """Make a pack of a newer format version; return its name, which covers the version."""
    (name,) = (info.name for info in store.list(names.PACKS))
    data = newer_prefix(store.get(name))
    start, stop = index_span(data[-TRAILER_SIZE:], len(data), name)
    new_name = f"{names.PACKS}{blake3_256(data[:PREFIX_SIZE] + data[start:stop]).hex()}"
    replace(store, name, data, new_name)
    return new_name


def assert_newer(name: str, action: Callable[[], object]) -> None:
    with pytest.raises(UnsupportedError, match=name) as caught:
        action()
    assert caught.value.code is ErrorCode.NEWER_FORMAT
    assert f"version {NEWER}" in str(caught.value)
    assert "upgrade" in str(caught.value)


def assert_reported(repo: Repository, name: str) -> None:
    assert any(
        name in str(problem) and problem.code is ErrorCode.NEWER_FORMAT
        for problem in repo.verify().problems
    )


def test_newer_store_is_refused_as_newer(store: MemoryStore) -> None:
    fields = json.loads(store.get(names.CONFIG))
    fields = {**fields, "format": NEWER, "chunk_size": "of another kind", "news": [1]}
    del fields["checksum"]
    total = checksum(json.dumps(fields, indent=2).encode()).hex()
    replace(store, names.CONFIG, json.dumps({**fields, "checksum": total}, indent=2).encode())
    assert_newer(names.CONFIG, lambda: casweights.open(store))
    assert_newer(names.CONFIG, lambda: casweights.open(store, create=True))


def test_newer_snapshot_is_refused_as_newer(store: MemoryStore, tmp_path: Path) -> None:
    (name,) = (info.name for info in store.list(names.SNAPSHOTS))
    make_snapshot_newer(store, name)
    with casweights.open(store) as repo:
        assert_newer(name, lambda: repo.checkout("main", tmp_path / "out"))
        assert_newer(name, lambda: repo.snapshot("v1"))
        assert_newer(name, lambda: list(repo.log()))
        assert_newer(name, lambda: repo.load("main"))
        assert_newer(name, repo.stats)
        assert_reported(repo, name)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("packs_apart")
def test_newer_pack_is_refused_as_newer(store: MemoryStore, tmp_path: Path) -> None:
    name = make_pack_newer(store)
    with casweights.open(store) as repo:
        assert_newer(name, lambda: repo.checkout("main", tmp_path / "out"))
        assert_newer(name, lambda: repo.commit(tmp_path / "model", message="more"))
        assert_newer(name, repo.stats)
        assert_reported(repo, name)
        assert [snapshot.message for snapshot in repo.log()] == [""]
    assert list((tmp_path / "out").iterdir()) == []


def test_newer_branch_is_refused_as_newer(store: MemoryStore, tmp_path: Path) -> None:
    name = names.move_name(names.HEADS, "main", 1)
    make_newer(store, name)
    with casweights.open(store) as repo:
        assert_newer(name, lambda: repo.resolve("main"))
        assert_newer(name, lambda: repo.commit(tmp_path / "model"))
        assert_newer(name, repo.branches)
        assert_reported(repo, name)
        repo.checkout("v1", tmp_path / "out")


def test_newer_tag_is_refused_as_newer(store: MemoryStore, tmp_path: Path) -> None:
    name = names.move_name(names.TAGS, "v1", 1)
    make_newer(store, name)
    with casweights.open(store) as repo:
        assert_newer(name, lambda: repo.resolve("v1"))
        assert_newer(name, repo.tags)
        assert_newer(name, lambda: repo.tag("v1", "main"))
        assert_reported(repo, name)
        repo.checkout("main", tmp_path / "out")
