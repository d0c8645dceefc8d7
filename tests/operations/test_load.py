"""Load: tensors of versions come back bit for bit, and only needed chunks are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

from casweights.config import KiB
from casweights.errors import (
    ErrorCode,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from casweights.testing.states import assert_same_state, assert_same_tensor
from casweights.testing.strategies import encode_header
from casweights.testing.trees import write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from casweights import Repository
    from casweights.testing import CountingStore

CHUNK = 64 * KiB
ROWS = torch.randint(0, 256, (64, 16 * KiB), dtype=torch.uint8)  # four rows to a chunk


def test_sharded_models_load_as_one(repo: Repository, tmp_path: Path) -> None:
    shards = [{"a": torch.ones(2), "b": torch.zeros(3)}, {"c": torch.arange(4)}]
    for n, shard in enumerate(shards):
        safetensors.torch.save_file(shard, tmp_path / f"model-{n}.safetensors")
    (tmp_path / "config.json").write_text("{}")
    repo.commit(tmp_path)
    assert_same_state(repo.load("main"), shards[0] | shards[1])
    assert_same_state(repo.load("main", include=["model-1*"]), shards[1])
    assert_same_state(
        repo.load("main", include=["a", "c"]), {"a": shards[0]["a"], "c": shards[1]["c"]}
    )


@pytest.mark.usefixtures("packs_apart")
def test_load_reads_each_chunk_once(repo: Repository, objects: CountingStore) -> None:
    repo.commit({"w": ROWS, "v": ROWS[:9]}, compression="fast")
    objects.reset()
    repo.load("main")
    assert objects.read_bytes("packs/") == ROWS.nbytes + 16 * KiB  # the last row is a short chunk
    objects.reset()
    repo.load("main", include=["v"])
    assert objects.read_bytes("packs/") == 9 * 16 * KiB


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize(
    ("index", "chunks"),
    [
        (0, 1),
        (-1, 1),
        (slice(0, 4), 1),
        (slice(3, 5), 2),
        (slice(4, 8), 1),
        (slice(8, 9), 1),
        (slice(0, 0), 0),
        (slice(60, None), 1),
        (slice(-1, None), 1),
        (slice(0, 16, 3), 4),
        ((slice(4, 8), slice(0, 10)), 1),
        ((5, slice(None, None, 2)), 1),
        (slice(None), 16),
        (..., 16),
        ((slice(None), 0), 16),
        (torch.tensor([1, 60]), 16),
    ],
)
def test_indexing_reads_only_what_it_needs(
    repo: Repository, objects: CountingStore, index: Any, chunks: int
) -> None:
    repo.commit({"w": ROWS}, compression="fast")
    tensor = repo.tensor("main", "w")
    objects.reset()
    assert_same_tensor(tensor[index], ROWS[index])
    assert objects.read_bytes("packs/") == chunks * CHUNK


def test_a_lazy_tensor_describes_itself_without_reading_chunks(
    repo: Repository, objects: CountingStore
) -> None:
    repo.commit({"layer.w": ROWS.view(torch.bfloat16)})
    objects.reset()
    tensor = repo.tensor("main", "layer.w")
    assert (tensor.name, tensor.dtype, tensor.shape) == ("layer.w", "BF16", (64, 8192))
    assert tensor.nbytes == ROWS.nbytes
    assert repr(tensor) == "LazyTensor('layer.w', BF16, [64, 8192])"
    assert objects.read_bytes("packs/") == 0


@pytest.mark.parametrize("index", [64, -65, (0, 0, 0), "x"])
def test_indexes_that_torch_refuses_raise_the_same_errors(repo: Repository, index: Any) -> None:
    repo.commit({"w": ROWS})
    with pytest.raises((IndexError, TypeError)):
        repo.tensor("main", "w")[index]


def test_scalars_and_empty_tensors_can_be_loaded_and_indexed(repo: Repository) -> None:
    state = {"scalar": torch.tensor(5.0), "none": torch.zeros(0, 3), "flat": torch.zeros(3, 0)}
    repo.commit(state)
    for name, expected in state.items():
        assert_same_tensor(repo.tensor("main", name).load(), expected)
    assert repo.tensor("main", "scalar")[()] == 5
    assert_same_tensor(repo.tensor("main", "flat")[1:], state["flat"][1:])
    with pytest.raises(IndexError):
        repo.tensor("main", "scalar")[0]


def test_a_missing_tensor_is_not_found(repo: Repository) -> None:
    repo.commit({"w": ROWS})
    for arguments in ({"name": "x"}, {"name": "w", "file": "other.safetensors"}):
        with pytest.raises(NotFoundError) as caught:
            repo.tensor("main", **arguments)
        assert caught.value.code is ErrorCode.TENSOR_NOT_FOUND


def test_a_name_in_two_files_is_ambiguous(repo: Repository, tmp_path: Path) -> None:
    for n in (1, 2):
        safetensors.torch.save_file({"w": torch.full((2,), n)}, tmp_path / f"{n}.safetensors")
    repo.commit(tmp_path)
    with pytest.raises(NotFoundError, match="name the file") as caught:
        repo.tensor("main", "w")
    assert caught.value.code is ErrorCode.AMBIGUOUS
    assert repo.tensor("main", "w", file="2.safetensors").load().tolist() == [2, 2]
    with pytest.raises(InvalidInputError, match=r"tensor 'w'.*: 1\.safetensors, 2\."):
        repo.load("main")
    assert repo.load("main", include=["1.safetensors"])["w"].tolist() == [1, 1]


def test_a_dtype_that_torch_lacks_can_be_checked_out_but_not_loaded(
    repo: Repository, tmp_path: Path
) -> None:
    table = {
        "fp6": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]},
        "w": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
    }
    content = encode_header(table) + b"abcde"
    write_tree({"m.safetensors": content}, tmp_path / "in")
    repo.commit(tmp_path / "in")
    with pytest.raises(UnsupportedError, match=r"F6_E2M3.*check out the file instead"):
        repo.load("main")
    assert repo.load("main", include=["w"])["w"].tolist() == [100, 101]
    repo.checkout("main", tmp_path / "out")
    assert (tmp_path / "out/m.safetensors").read_bytes() == content


def test_a_version_without_tensors_loads_as_an_empty_dict(repo: Repository, tmp_path: Path) -> None:
    write_tree({"config.json": b"{}"}, tmp_path)
    repo.commit(tmp_path)
    assert repo.load("main") == {}


def test_a_state_survives_checkout_and_commit(repo: Repository, tmp_path: Path) -> None:
    shared = torch.ones(3)
    state = {"model": {"a": shared, "b": shared}, "step": 5}
    first = repo.commit(state)
    repo.checkout(first, tmp_path)
    second = repo.commit(tmp_path)
    assert second.files == first.files
    assert_same_state(repo.load(second), state)


def test_a_malformed_tree_is_refused(repo: Repository, tmp_path: Path) -> None:
    for tree in (
        "",
        "[]",
        '["dict"]',
        '["dict",[["a",["tensor","x"]]]]',
        '["value",1]',
        "[" * 9999,
    ):
        safetensors.torch.save_file(
            {"w": torch.ones(1)}, tmp_path / "m.safetensors", {"casweights.tree": tree}
        )
        repo.commit(tmp_path)
        with pytest.raises(InvalidInputError, match=r"casweights\.tree") as caught:
            repo.load("main")
        assert caught.value.code is ErrorCode.BAD_STATE
        assert repo.load("main", include=["w"])["w"].tolist() == [1]
