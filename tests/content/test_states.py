"""State dicts as files: which are accepted, how they are stored, and which are refused."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch

from casweights.content.states import STATE_FILE, StateFile
from casweights.content.trees import rebuild, tied_names
from casweights.errors import ErrorCode, InvalidInputError, UnsupportedError
from casweights.format.safetensors import TREE_KEY
from casweights.testing.states import assert_same_state
from casweights.testing.strategies import TORCH_DTYPES, from_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casweights import Repository


def committed(repo: Repository, state: dict[Any, Any]) -> bytes:
    """Commit a state dict, and return the bytes of its file."""
    return b"".join(repo.read(repo.commit(state), STATE_FILE))


def test_a_flat_state_is_an_ordinary_file(repo: Repository) -> None:
    state = {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16)}
    assert committed(repo, state) == safetensors.torch.save(state, {"format": "pt"})


@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_tensors_of_every_dtype_load_bit_for_bit(repo: Repository, dtype: torch.dtype) -> None:
    """Random bits include every kind of NaN and zero; some tensors are not contiguous or empty."""
    rng = np.random.default_rng(0)
    state = {
        "random": from_bytes(rng.bytes(200_000 // 8 * 8), dtype, (-1,)),
        "ones": from_bytes(b"\xff" * 48, dtype, (2, -1)),
        "signs": from_bytes((bytes(dtype.itemsize - 1) + b"\x80") * 6, dtype, (2, 3)),
        "transposed": from_bytes(rng.bytes(700 * 900 * dtype.itemsize), dtype, (700, 900)).t(),
        "expanded": from_bytes(b"\x7f" * dtype.itemsize, dtype, (1,)).expand(300, 400),
        "none": torch.empty((0, 3), dtype=dtype),
    }
    assert_same_state(repo.load(repo.commit(state)), state)


def test_the_state_of_a_module_can_be_loaded_into_it(repo: Repository) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    file = committed(repo, module.state_dict())
    assert file == safetensors.torch.save(module.state_dict(), {"format": "pt"})
    loaded = repo.load("main")
    assert_same_state(loaded, dict(module.state_dict()))
    module.load_state_dict(loaded)


def test_the_state_of_an_optimizer_can_be_loaded_into_it(repo: Repository) -> None:
    module = torch.nn.Linear(300, 200)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module(torch.randn(7, 300)).sum().backward()
    optimizer.step()
    state = {"step": 1, "model": module.state_dict(), "optimizer": optimizer.state_dict()}
    repo.commit(state)
    loaded = repo.load("main")
    assert_same_state(loaded, state)
    torch.optim.AdamW(module.parameters()).load_state_dict(loaded["optimizer"])


def test_other_programs_read_a_nested_state(repo: Repository) -> None:
    state = {"model": {"w": torch.arange(4)}, "more": [torch.zeros(2), 5]}
    loaded = safetensors.torch.load(committed(repo, state))
    assert loaded.keys() == {"model.w", "more.0"}
    assert loaded["model.w"].tolist() == [0, 1, 2, 3]


def test_a_nested_state_keeps_the_order_of_its_keys(repo: Repository) -> None:
    state = {"z": {"b": 1, "a": 2}, 10: None, 2: "x", "a": torch.zeros(1)}
    loaded = repo.load(repo.commit(state))
    assert list(loaded) == ["z", 10, 2, "a"]
    assert list(loaded["z"]) == ["b", "a"]


def test_tied_tensors_are_stored_once_and_come_back_tied(repo: Repository) -> None:
    embedding = torch.randn(100, 50)
    state = {"embed": embedding, "head": embedding, "other": embedding.clone()}
    file = committed(repo, state)
    assert len(file) < 3 * embedding.nbytes
    loaded = repo.load("main")
    assert loaded["embed"] is loaded["head"]
    assert loaded["embed"] is not loaded["other"]
    assert_same_state(loaded, state)


def test_tied_parameters_of_a_module_load_as_ties(repo: Repository) -> None:
    """Each call of state_dict creates new tensor objects for the same memory."""
    module = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5)})
    module["head"].weight = module["embed"].weight
    loaded = repo.load(repo.commit(module.state_dict()))
    assert loaded["head.weight"] is loaded["embed.weight"]


def test_views_that_only_overlap_are_not_tied(repo: Repository) -> None:
    base = torch.arange(10)
    state = {
        "all": base,
        "half": base[:5],
        "column": base.reshape(5, 2),
        "bits": base.view(torch.float64),
    }
    loaded = repo.load(repo.commit(state))
    assert_same_state(loaded, state)
    loaded["half"][0] = 100
    assert loaded["all"][0] == 0


def test_conjugates_are_not_tied_to_their_base(repo: Repository) -> None:
    base = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    state = {"base": base, "conjugate": base.conj(), "negative": base.conj().imag}
    assert_same_state(repo.load(repo.commit(state)), state)


def test_tensors_with_the_same_path_get_distinct_names(repo: Repository) -> None:
    state = {
        "a.b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
        1: torch.tensor(3),
        "1": torch.tensor(4),
        "": torch.tensor(5),
        "__metadata__": torch.tensor(6),
        "list": [torch.tensor(7)],
        "list.0": torch.tensor(8),
    }
    assert_same_state(repo.load(repo.commit(state)), state)


def test_empty_states_load_as_they_were(repo: Repository) -> None:
    assert repo.load(repo.commit({})) == {}
    assert repo.load(repo.commit({"a": {}, "b": [], "c": ()})) == {"a": {}, "b": [], "c": ()}


def test_single_elements_of_a_larger_tensor_load_bit_for_bit(repo: Repository) -> None:
    """Their strides are unusual, although they are contiguous."""
    base = torch.arange(12, dtype=torch.int16).reshape(3, 4)
    state = {"row": base[0, 1::4], "block": base[1:2, 2::3], "column": base[:1, :1].t()}
    assert_same_state(repo.load(repo.commit(state)), state)


def test_python_values_load_as_they_were(repo: Repository) -> None:
    state = {
        "int": 10**30,
        "negative": -(2**63),
        "true": True,
        "one": 1,
        "float": 0.1,
        "whole": 2.0,
        "minus zero": -0.0,
        "infinite": float("-inf"),
        "nan": float("nan"),
        "text": "größe \0 💾",
        "none": None,
        "tuple": (0.9, 0.999),
    }
    assert_same_state(repo.load(repo.commit(state)), state)


def test_parameters_and_buffers_load_as_plain_tensors(repo: Repository) -> None:
    state = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "buffer": torch.nn.Buffer(torch.ones(2)),
        "computed": torch.nn.Parameter(torch.ones(2)) * 2,
    }
    loaded = repo.load(repo.commit(state))
    assert all(type(tensor) is torch.Tensor for tensor in loaded.values())
    assert not any(tensor.requires_grad for tensor in loaded.values())


def test_changing_a_loaded_tensor_does_not_change_the_store(repo: Repository) -> None:
    repo.commit({"a": torch.zeros(3), "none": torch.zeros(0)})
    loaded = repo.load("main")
    loaded["a"] += 1
    assert repo.load("main")["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": np.array(["text"])}}, "ndarray at 'a.b'"),
        ({"a": np.datetime64("2026-01-01")}, "datetime64 at 'a'"),
        ({"a": np.ma.masked_array([1], [True])}, "MaskedArray at 'a'"),
        ({"a": [object()]}, "object at 'a.0'"),
        ({"a": {1, 2}}, "set at 'a'"),
        ({"a": torch.float32}, "dtype at 'a'"),
        ({"a": 1j}, "complex at 'a'"),
        ({"a": "\ud800"}, "str at 'a'"),
        ({("k",): 1}, "OrderedDict|dict at 'its top'"),
        ({True: torch.ones(1)}, "dict at 'its top'"),
        ({"a": {None: 1}}, "dict at 'a'"),
    ],
)
def test_objects_of_other_types_are_refused_by_path(
    repo: Repository, state: dict[Any, Any], where: str
) -> None:
    with pytest.raises(InvalidInputError, match=where) as caught:
        repo.commit(state)
    assert caught.value.code is ErrorCode.BAD_STATE
    assert not repo.branches()


def test_keys_that_are_not_unicode_are_refused(repo: Repository) -> None:
    with pytest.raises(InvalidInputError, match="not valid Unicode"):
        repo.commit({"\ud800": torch.ones(1)})


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.ones(2, device="meta"), "is meta"),
        (lambda: torch.eye(2).to_sparse(), "is sparse"),
        (lambda: torch.zeros(2, dtype=torch.complex128), "safetensors cannot express"),
        (lambda: Wrapped(torch.zeros(2)), "is a Wrapped"),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused_by_path(
    repo: Repository, make: Callable[[], torch.Tensor], why: str
) -> None:
    with pytest.raises(UnsupportedError, match=why) as caught:
        repo.commit({"model": {"w": make()}})
    assert "model.w" in str(caught.value)


class Wrapped(torch.Tensor):
    """A subclass whose memory may not hold its value."""


def test_a_state_that_contains_itself_is_refused(repo: Repository) -> None:
    state: dict[str, Any] = {}
    state["again"] = state
    with pytest.raises(InvalidInputError, match="does it contain itself"):
        repo.commit(state)


def metadata_of(state: Mapping[Any, Any]) -> dict[str, str]:
    file = StateFile(state)
    assert file.header is not None
    return file.header.metadata


def test_a_tree_is_only_written_if_it_is_needed() -> None:
    flat = OrderedDict(b=torch.ones(1), a=torch.ones(2))
    assert metadata_of(flat) == {"format": "pt"}
    tied = {"a": flat["a"], "b": flat["a"]}
    tree = json.loads(metadata_of(tied)[TREE_KEY])
    assert tree == ["dict", [["a", ["tensor", "a"]], ["b", ["tensor", "a"]]]]


def test_a_long_key_above_many_tied_tensors_is_refused() -> None:
    """All paths together would be as long as the key, times the number of tensors."""
    tied = [[f"{n:05}", ["tensor", "t"]] for n in range(20_000)]
    metadata = {TREE_KEY: json.dumps(["dict", [["k" * 10_000, ["dict", tied]]]])}
    with pytest.raises(InvalidInputError, match="keys are too long"):
        tied_names(metadata)
    metadata = {TREE_KEY: json.dumps(["dict", [["k" * 10, ["dict", tied]]]])}
    assert len(tied_names(metadata)) == len(tied)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_by_name(repo: Repository, layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout)
    with pytest.raises(UnsupportedError, match="the tensor 'a' is nested"):
        repo.commit({"a": nested})


ARRAYS = [
    np.arange(6, dtype=np.int16).reshape(2, 3),
    np.arange(6.0)[::-2],
    np.array(5, np.uint8),
    np.zeros((0, 3), np.float16),
    np.frombuffer(b"read only", np.uint8),
    np.array([True, False]),
    np.array([0x7FC00001, 0xFF800001], np.uint32).view(np.float32),
]
SCALARS = [np.float64(1e-3), np.int64(-3), np.bool_(True), np.float32("nan"), np.complex64(1j)]


@pytest.mark.parametrize("value", [*ARRAYS, *SCALARS], ids=repr)
def test_numpy_values_load_as_they_were(repo: Repository, value: Any) -> None:
    loaded = repo.load(repo.commit({"a": [value], "w": torch.ones(1)}))
    (found,) = loaded["a"]
    assert type(found) is type(value)
    assert (found.dtype, found.shape) == (value.dtype, value.shape)
    assert found.tobytes() == value.tobytes()


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256))])
def test_bytes_load_as_they_were(repo: Repository, data: bytes) -> None:
    stream = io.BytesIO(data)
    stream.seek(0, io.SEEK_END)
    loaded = repo.load(repo.commit({"a._extra_state": data, "b._extra_state": stream}))
    assert loaded["a._extra_state"] == data
    assert type(loaded["a._extra_state"]) is bytes
    assert isinstance(loaded["b._extra_state"], io.BytesIO)
    assert loaded["b._extra_state"].read() == data


@pytest.mark.parametrize("node", [["scalar", "w"], ["bytes", "m"], ["stream", "m"], ["array", "h"]])
def test_a_tree_that_misuses_a_tensor_is_refused(node: list[str]) -> None:
    tensors = {"w": torch.ones(2), "m": torch.ones(2, 2), "h": torch.ones(1, dtype=torch.bfloat16)}
    with pytest.raises(InvalidInputError, match="malformed"):
        rebuild(tensors, {TREE_KEY: json.dumps(["dict", [["a", node]]])})


def test_extra_state_is_left_out_on_request(repo: Repository) -> None:
    layer = {"w": torch.ones(2), "_extra_state": io.BytesIO(b"x"), "b._extra_state": object()}
    repo.commit({"model": layer, "all": [layer]}, extra_state="drop")
    kept = {"w": torch.ones(2)}
    loaded = repo.load("main")
    assert loaded.keys() == {"model", "all"}
    assert_same_state(loaded["model"], kept)
    assert_same_state(loaded["all"], [kept])
    with pytest.raises(InvalidInputError, match="must be one of keep, drop"):
        repo.commit(layer, extra_state="all")  # type: ignore[arg-type]
