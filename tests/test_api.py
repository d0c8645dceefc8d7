"""The public surface: what `casweights` exports, and how stores are opened."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import MiB, StoreConfig
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path


def test_public_names() -> None:
    assert casweights.__all__ == sorted(casweights.__all__)
    assert len(casweights.__all__) <= 24
    assert dir(casweights) == casweights.__all__
    for name in casweights.__all__:
        assert getattr(casweights, name).__doc__, name


def test_names_that_are_not_public() -> None:
    with pytest.raises(AttributeError, match="has no attribute"):
        casweights.nothing  # noqa: B018
    assert not hasattr(casweights, "__path")


def test_star_import() -> None:
    code = "from casweights import *; print(Repository.__name__, open.__module__, NotFoundError)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split()[:2] == ["Repository", "casweights.opening"]


def test_every_method_is_documented() -> None:
    for kind in (casweights.Repository, casweights.LazyTensor, casweights.Reporter):
        for name, member in inspect.getmembers(kind):
            if not name.startswith("_"):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_options_are_named() -> None:
    """So that new ones can come anywhere."""
    positional = {
        name: [
            p.name
            for p in inspect.signature(member).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
        ]
        for name, member in inspect.getmembers(casweights.Repository, inspect.isfunction)
        if not name.startswith("_")
    }
    assert max(map(len, positional.values())) <= 2
    assert positional["commit"] == ["source"]
    assert positional["checkout"] == ["ref", "directory"]


def test_values_pickle() -> None:
    with casweights.open("memory://", create=True) as repo:
        first = repo.commit({"w": torch.ones(3), "step": 1}, metadata={"a": [1]})
        second = repo.commit({"w": torch.ones(4)})
        for value in (first, repo.diff(first, second), repo.stats(), repo.verify(), repo.config):
            assert pickle.loads(pickle.dumps(value)) == value


def test_snapshots_are_short_to_look_at_and_hashable() -> None:
    with casweights.open("memory://", create=True) as repo:
        state = {f"layers.{n}": torch.full((100,), n) for n in range(1000)}
        snapshot = repo.commit(state, message="first")
        assert repr(snapshot) == f"Snapshot({snapshot.id}, 'first', 1 files, {snapshot.size} bytes)"
        assert repr(snapshot.files[0]).startswith("FileEntry(path='model.safetensors', size=")
        assert len(repr(snapshot.files)) < 200
        assert {snapshot, repo.snapshot("main")} == {snapshot}


def test_open_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no casweights store at") as caught:
        casweights.open(tmp_path / "nothing")
    assert caught.value.code is ErrorCode.STORE_NOT_FOUND
    assert list(tmp_path.iterdir()) == []


def test_create(tmp_path: Path) -> None:
    config = StoreConfig(digest="xxh3-128", chunk_size=MiB)
    with casweights.open(tmp_path / "a/store", create=True, config=config) as repo:
        assert repo.config == config
        assert repo.url == str(tmp_path / "a/store")
        assert repr(repo) == f"Repository({str(tmp_path / 'a/store')!r})"
        repo.commit({"n": 1})
    with casweights.open(tmp_path / "a/store") as repo:
        assert repo.config == config
        assert repo.load("main") == {"n": 1}


def test_create_what_is_there_already(tmp_path: Path) -> None:
    casweights.open(tmp_path, create=True, config=StoreConfig(chunk_size=MiB)).close()
    with casweights.open(tmp_path, create=True) as repo:
        assert repo.config.chunk_size == MiB


def test_create_inside_a_directory_with_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with casweights.open(tmp_path, create=True) as repo:
        repo.commit({"n": 1})
        problems = repo.verify().problems
    assert [str(problem) for problem in problems] == [
        "notes.txt is no object of a casweights store"
    ]


def test_what_is_no_store() -> None:
    objects = MemoryStore()
    objects.put("casweights.json", [b"{}"])
    with pytest.raises(IntegrityError, match=r"casweights\.json is damaged"):
        casweights.open(objects)


def test_stores_that_are_not_supported() -> None:
    with pytest.raises(UnsupportedError, match="s3:// stores are not supported"):
        casweights.open("s3://bucket/weights")
    with pytest.raises(InvalidInputError, match="empty"):
        casweights.open("")


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_any_number_of_workers(workers: int) -> None:
    with casweights.open("memory://", create=True, workers=workers) as repo:
        state = {f"{n}": torch.full((100_000,), n) for n in range(20)}
        loaded = repo.load(repo.commit(state))
        assert all(loaded[name].equal(state[name]) for name in state)


@pytest.mark.parametrize("workers", [-1, 0])
def test_an_impossible_number_of_workers(workers: int) -> None:
    with pytest.raises(InvalidInputError, match="workers"):
        casweights.open("memory://", create=True, workers=workers)


def test_every_error_is_ours() -> None:
    for name in casweights.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(casweights, name), CasweightsError)
