"""Small tensors that share chunks: each is read, compared and selected by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import casweights
from casweights import ConflictError, IntegrityError, NotFoundError
from casweights.config import StoreConfig
from casweights.content.files import DiskFile
from casweights.content.spans import stored_tensors
from casweights.operations.load import load_each
from casweights.stores.memory import MemoryStore
from casweights.system.buffers import Pool
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository

    State = dict[str, torch.Tensor]

COUNT = 40


@pytest.fixture
def objects() -> CountingStore:
    return CountingStore(MemoryStore())


@pytest.fixture
def repo(objects: CountingStore) -> Iterator[Repository]:
    config = StoreConfig(chunk_size=CHUNK)
    with casweights.open(objects, create=True, config=config, workers=2) as repository:
        yield repository


def small(seed: int = 0, count: int = COUNT) -> State:
    """Small tensors, which share a few chunks, an empty one, and a large one among them."""
    generator = torch.Generator().manual_seed(seed)
    state = {f"n{k:03}": torch.randn(8, 3, generator=generator) for k in range(count)}
    state["n007x"] = torch.empty(0, 3)
    state["n020x"] = torch.randn(CHUNK // 3, generator=generator)
    return state


def chunks_of(repo: Repository, name: str) -> tuple[object, ...]:
    (file,) = repo.snapshot("main").files
    return next(s.chunks for s in stored_tensors(file, CHUNK) if s.info.name == name)


def test_neighbours_share_a_chunk_and_load_as_they_were(
    repo: Repository, objects: CountingStore
) -> None:
    state = small()
    repo.commit(state, compression="fast")
    (file,) = repo.snapshot("main").files
    assert len(file.chunks) < COUNT // 4
    assert chunks_of(repo, "n000") == chunks_of(repo, "n001")
    assert chunks_of(repo, "n007x") == ()
    objects.reset()
    assert_same_state(repo.load("main"), state)
    whole = objects.read_bytes("packs/", "snapshots/")
    assert whole < sum(tensor.nbytes for tensor in state.values()) + 100


@pytest.mark.usefixtures("frames_alone")
def test_tensors_that_share_a_chunk_are_read_together(
    repo: Repository, objects: CountingStore
) -> None:
    state = small()
    repo.commit(state)
    (file,) = repo.snapshot("main").files
    objects.reset()
    stored = list(stored_tensors(file, CHUNK))
    loaded = list(load_each(repo.database, stored))
    for one, tensor in zip(stored, loaded, strict=True):
        assert torch.equal(tensor, state[one.info.name])
    assert (
        objects.read_bytes("packs/", "snapshots/")
        < sum(tensor.nbytes for tensor in state.values()) + 100
    )


@pytest.mark.parametrize("name", ["n000", "n001", "n039", "n007x", "n020x"])
def test_a_member_is_loaded_alone_and_sliced(repo: Repository, name: str) -> None:
    state = small()
    repo.commit(state)
    wanted = state[name]
    assert_same_state(repo.load("main", include=[name]), {name: wanted})
    lazy = repo.tensor("main", name)
    assert_same_state(lazy.load(), wanted)
    for index in (slice(1, 3), slice(2, 2), slice(0, 8, 3), slice(None), (slice(3, 5), ..., 0)):
        if wanted.dim() > 1 or not isinstance(index, tuple):
            assert torch.equal(lazy[index], wanted[index])
    if len(wanted):
        assert torch.equal(lazy[2], wanted[2])
        assert torch.equal(lazy[-1], wanted[-1])


def test_only_the_member_that_changed_differs(repo: Repository) -> None:
    state = small()
    repo.commit(state)
    state["n001"] = state["n001"] + 1
    del state["n030"]
    state["n031x"] = torch.ones(2)
    repo.commit(state)
    diff = repo.diff("main~1", "main")
    assert [(change.tensor, str(change.kind)) for change in diff.changes] == [
        ("n001", "changed"),
        ("n030", "removed"),
        ("n031x", "added"),
    ]
    assert diff.changes[0].nbytes == state["n001"].nbytes
    assert diff.unchanged == COUNT + 1  # with the file's metadata, without two of the tensors


@pytest.mark.usefixtures("packs_apart")
def test_a_diff_of_damaged_chunks_is_refused(repo: Repository, objects: CountingStore) -> None:
    state = small()
    repo.commit(state)
    repo.commit(state | {"n001": state["n001"] + 1})
    for info in list(objects.list("packs/")):
        objects.delete(info.name)
    with casweights.open(objects) as fresh, pytest.raises(IntegrityError):
        fresh.diff("main~1", "main")


def test_a_part_of_the_members_is_checked_out(repo: Repository, tmp_path: Path) -> None:
    state = small()
    repo.commit(state)
    (file,) = repo.snapshot("main").files
    chosen = ["n000", "n002", "n007x", "n011", "n019", "n020x", "n021"]
    repo.checkout("main", tmp_path, include=chosen)
    part = tmp_path / file.path
    assert_same_state(load_file(part), {name: state[name] for name in chosen})
    again = DiskFile(file.path, part)
    pool, hasher = Pool(CHUNK), repo.database.hasher
    cut = {hasher(again.read([piece], pool)[0]) for piece in again.pieces(CHUNK)}
    assert not cut <= set(file.chunks)  # so the store does not have all of these chunks


def test_a_part_of_the_members_counts_as_saved(repo: Repository, tmp_path: Path) -> None:
    state = small()
    repo.commit(state)
    path = repo.snapshot("main").files[0].path
    for chosen in (["n000", "n002", "n020x"], ["n000", "n002"], ["n001"]):
        repo.checkout("main", tmp_path, include=chosen)
        repo.checkout("main", tmp_path, include=["n003", "n005"])  # no `overwrite`
        assert load_file(tmp_path / path).keys() == {"n003", "n005"}
    for chosen in (["n000", "n002", "n020x"], ["n000", "n002"]):
        repo.checkout("main", tmp_path, include=chosen)
        changed = {name: state[name].clone() for name in chosen}
        changed["n002"][1] += 1
        save_file(changed, tmp_path / path, metadata={"format": "pt"})
        with pytest.raises(ConflictError):
            repo.checkout("main", tmp_path, include=["n003"])
        repo.checkout("main", tmp_path, include=["n003"], overwrite=True)


def test_a_part_of_an_old_version_counts_as_saved(repo: Repository, tmp_path: Path) -> None:
    old = repo.commit(small(1)).id
    for seed in range(2, 13):  # further back than the versions that are read first
        repo.commit(small(seed))
    repo.checkout(old, tmp_path, include=["n000", "n002"])
    repo.checkout("main", tmp_path, include=["n003"])
    assert_same_state(load_file(tmp_path / "model.safetensors"), {"n003": small(12)["n003"]})


def test_a_part_of_the_members_that_is_there_already_is_kept(
    repo: Repository, tmp_path: Path
) -> None:
    repo.commit(small())
    path = tmp_path / repo.snapshot("main").files[0].path
    repo.checkout("main", tmp_path, include=["n000", "n002"])
    before = path.stat()
    repo.checkout("main", tmp_path, include=["n000", "n002"])
    assert path.stat().st_ino == before.st_ino


@pytest.mark.usefixtures("packs_apart")
def test_a_part_of_a_damaged_chunk_is_refused(
    repo: Repository, objects: CountingStore, tmp_path: Path
) -> None:
    repo.commit(small())
    for info in list(objects.list("packs/")):
        objects.delete(info.name)
    with casweights.open(objects) as fresh, pytest.raises((IntegrityError, NotFoundError)):
        fresh.checkout("main", tmp_path, include=["n000", "n002"])
    assert list(tmp_path.iterdir()) == []


def test_equal_members_of_differently_cut_files_are_one_tensor(
    repo: Repository, tmp_path: Path
) -> None:
    state = small()
    first = {name: tensor for name, tensor in state.items() if name < "n013"}
    save_file(state, tmp_path / "model.safetensors")
    save_file(first, tmp_path / "model-00001-of-00002.safetensors")
    rest = {name: tensor for name, tensor in state.items() if name not in first}
    save_file(rest, tmp_path / "model-00002-of-00002.safetensors")
    repo.commit(tmp_path)
    assert_same_state(repo.load("main"), state)
    assert torch.equal(repo.tensor("main", "n012").load(), state["n012"])
    first["n012"] = first["n012"] + 1
    save_file(first, tmp_path / "model-00001-of-00002.safetensors")
    repo.commit(tmp_path)
    with pytest.raises(casweights.InvalidInputError, match="n012"):
        repo.load("main")
    with pytest.raises(NotFoundError, match="n012"):
        repo.tensor("main", "n012")
