"""The public API: the exports of `casweights`, and the ways to open a store."""

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


def test_public_names_are_sorted_few_and_documented() -> None:
    assert casweights.__all__ == sorted(casweights.__all__)
    assert len(casweights.__all__) <= 24
    assert dir(casweights) == casweights.__all__
    for name in casweights.__all__:
        assert getattr(casweights, name).__doc__, name


def test_other_names_raise_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute"):
        casweights.nothing  # noqa: B018
    assert not hasattr(casweights, "__path")


def test_star_import_provides_the_public_names() -> None:
    code = "from casweights import *; print(Repository.__name__, open.__module__, NotFoundError)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split()[:2] == ["Repository", "casweights.opening"]


def test_every_public_method_has_a_docstring() -> None:
    for kind in (casweights.Repository, casweights.LazyTensor, casweights.Reporter):
        for name, member in inspect.getmembers(kind):
            if not name.startswith("_"):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_options_are_keyword_only() -> None:
    """New options can be added anywhere, since no caller passes them by position."""
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


def test_results_pickle() -> None:
    with casweights.open("memory://", create=True) as repo:
        first = repo.commit({"w": torch.ones(3), "step": 1}, metadata={"a": [1]})
        second = repo.commit({"w": torch.ones(4)})
        for value in (first, repo.diff(first, second), repo.stats(), repo.verify(), repo.config):
            assert pickle.loads(pickle.dumps(value)) == value


def test_snapshots_have_a_short_repr_and_are_hashable() -> None:
    with casweights.open("memory://", create=True) as repo:
        state = {f"layers.{n}": torch.full((100,), n) for n in range(1000)}
        snapshot = repo.commit(state, message="first")
        assert repr(snapshot) == f"Snapshot({snapshot.id}, 'first', 1 files, {snapshot.size} bytes)"
        assert repr(snapshot.files[0]).startswith("FileEntry(path='model.safetensors', size=")
        assert len(repr(snapshot.files)) < 200
        assert {snapshot, repo.snapshot("main")} == {snapshot}


def test_opening_a_missing_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no casweights store at") as caught:
        casweights.open(tmp_path / "nothing")
    assert caught.value.code is ErrorCode.STORE_NOT_FOUND
    assert list(tmp_path.iterdir()) == []


def test_create_makes_a_store_with_its_config(tmp_path: Path) -> None:
    config = StoreConfig(digest="xxh3-128", chunk_size=MiB)
    with casweights.open(tmp_path / "a/store", create=True, config=config) as repo:
        assert repo.config == config
        assert repo.url == str(tmp_path / "a/store")
        assert repr(repo) == f"Repository({str(tmp_path / 'a/store')!r})"
        repo.commit({"n": 1})
    with casweights.open(tmp_path / "a/store") as repo:
        assert repo.config == config
        assert repo.load("main") == {"n": 1}


def test_create_keeps_an_existing_store(tmp_path: Path) -> None:
    casweights.open(tmp_path, create=True, config=StoreConfig(chunk_size=MiB)).close()
    with casweights.open(tmp_path, create=True) as repo:
        assert repo.config.chunk_size == MiB


def test_create_accepts_a_directory_with_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with casweights.open(tmp_path, create=True) as repo:
        repo.commit({"n": 1})
        problems = repo.verify().problems
    assert [str(problem) for problem in problems] == [
        "notes.txt is not an object of a casweights store"
    ]


def test_a_wrong_store_file_is_an_integrity_error() -> None:
    objects = MemoryStore()
    objects.put("casweights.json", [b"{}"])
    with pytest.raises(IntegrityError, match=r"casweights\.json is damaged"):
        casweights.open(objects)


def test_unknown_schemes_and_empty_paths_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="s3:// stores are not supported"):
        casweights.open("s3://bucket/weights")
    with pytest.raises(InvalidInputError, match="empty"):
        casweights.open("")


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_every_number_of_workers_loads_the_same(workers: int) -> None:
    with casweights.open("memory://", create=True, workers=workers) as repo:
        state = {f"{n}": torch.full((100_000,), n) for n in range(20)}
        loaded = repo.load(repo.commit(state))
        assert all(loaded[name].equal(state[name]) for name in state)


@pytest.mark.parametrize("workers", [-1, 0])
def test_fewer_than_one_worker_is_refused(workers: int) -> None:
    with pytest.raises(InvalidInputError, match="workers"):
        casweights.open("memory://", create=True, workers=workers)


def test_every_public_error_is_a_casweights_error() -> None:
    for name in casweights.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(casweights, name), CasweightsError)
