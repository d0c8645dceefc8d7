"""Weights: the tensors that programs for models load are selected, and no others."""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch

import casweights
from casweights.content import shard_index as module
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
)
from casweights.events import Reporter
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from casweights.testing.trees import write_tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from casweights import Repository

    State = dict[str, torch.Tensor]

NAMES = ("a", "b")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ONE, TWO, THREE = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2, 3))


def state(value: float, *names: str) -> State:
    return {name: torch.full((4,), value + n / 8) for n, name in enumerate(names or NAMES)}


def index(**shards: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": shards}).encode()


def write(directory: Path, files: Mapping[str, State | bytes]) -> Path:
    write_tree(dict.fromkeys(files, b""), directory)
    for path, content in files.items():
        if isinstance(content, bytes):
            (directory / path).write_bytes(content)
        else:
            safetensors.torch.save_file(content, directory / path)
    return directory


RIGHT = state(1)
WRONG = state(9)
SHARDED: dict[str, State | bytes] = {
    ONE: {"a": RIGHT["a"]},
    TWO: {"b": RIGHT["b"]},
    INDEX: index(a=ONE, b=TWO),
}
HALVES = {name: tensor.half() for name, tensor in WRONG.items()}


@pytest.mark.parametrize(
    "files",
    [
        {SINGLE: RIGHT},
        SHARDED,
        {ONE: SHARDED[ONE], TWO: SHARDED[TWO]},
        {"model-a.safetensors": SHARDED[ONE], "model-b.safetensors": SHARDED[TWO]},
        # Strays that no index names.
        SHARDED | {THREE: WRONG},
        SHARDED | {"other.safetensors": WRONG},
        # The same weights twice, and an index that names the single file.
        SHARDED | {SINGLE: RIGHT},
        {SINGLE: RIGHT, ONE: RIGHT},
        {SINGLE: RIGHT, ONE: {"a": RIGHT["a"]}},
        {SINGLE: RIGHT, INDEX: index(a=SINGLE, b=SINGLE)},
        {ONE: RIGHT, TWO: {"b": RIGHT["b"]}, INDEX: index(a=ONE, b=TWO)},
        # Other sets of weights.
        {SINGLE: RIGHT, "model.fp16.safetensors": HALVES},
        SHARDED | {"model.fp16-00001-of-00001.safetensors": HALVES},
        SHARDED | {"model.safetensors.index.fp16.json": b"{"},
        {SINGLE: RIGHT, "consolidated.safetensors": state(3, "layers.0.wq")},
        {SINGLE: RIGHT, "adapter_model.safetensors": state(3, "a.lora_A")},
        {SINGLE: RIGHT, "model_ema.safetensors": WRONG},
        {SINGLE: RIGHT, "original/consolidated.00.safetensors": WRONG},
        {SINGLE: RIGHT, "original/" + INDEX: b"{"},
        {SINGLE: RIGHT, "checkpoint-1/" + SINGLE: WRONG, "zz/" + SINGLE: WRONG},
        SHARDED | {"checkpoint-1/" + path: WRONG for path in (ONE, TWO)},
        # Other names.
        {
            "diffusion_pytorch_model.safetensors": RIGHT,
            "diffusion_pytorch_model.fp16.safetensors": HALVES,
        },
        {"consolidated.00.safetensors": SHARDED[ONE], "consolidated.01.safetensors": SHARDED[TWO]},
        {"adapter_model.safetensors": RIGHT, "optimizer.safetensors": WRONG},
        # Names that no program knows, in the top folder and below.
        {"x.safetensors": SHARDED[ONE], "y/z.safetensors": SHARDED[TWO]},
        {"unet/diffusion_pytorch_model.safetensors": SHARDED[ONE], "vae/" + SINGLE: SHARDED[TWO]},
        {"unet/" + path: content for path, content in SHARDED.items()} | {"unet/" + THREE: WRONG},
        {"sub/x.safetensors": RIGHT, INDEX: index(a="sub/x.safetensors", b="./sub/x.safetensors")},
    ],
    ids=lambda files: " ".join(files),
)
def test_the_weights_that_programs_load_are_selected(
    repo: Repository, tmp_path: Path, files: dict[str, State | bytes]
) -> None:
    repo.commit(write(tmp_path, files))
    assert_same_state(repo.load("main"), RIGHT)
    for name, tensor in RIGHT.items():
        assert repo.tensor("main", name).load().equal(tensor)
    live = {name: torch.zeros_like(tensor) for name, tensor in RIGHT.items()}
    with casweights.Subscriber(repo) as subscriber:
        subscriber.sync(live)
    assert_same_state(live, RIGHT)


@pytest.mark.parametrize(
    ("files", "candidates"),
    [
        (SHARDED | {SINGLE: WRONG}, [INDEX, SINGLE, ONE]),
        (SHARDED | {SINGLE: state(1, "a")}, [INDEX, SINGLE, TWO]),
        (SHARDED | {SINGLE: state(1, "c")}, [INDEX, SINGLE]),
        ({SINGLE: RIGHT, ONE: WRONG}, [SINGLE, ONE]),
        ({SINGLE: RIGHT, ONE: {"a": RIGHT["a"].half(), "b": RIGHT["b"]}}, [SINGLE, ONE]),
        ({SINGLE: RIGHT, ONE: {"a": RIGHT["a"].view(2, 2), "b": RIGHT["b"]}}, [SINGLE, ONE]),
        ({ONE: RIGHT, TWO: WRONG}, [ONE, TWO]),
        ({ONE: RIGHT, TWO: WRONG, INDEX: index(a=ONE, b=TWO)}, [ONE, TWO]),
        (
            {"checkpoint-1/" + SINGLE: RIGHT, "checkpoint-2/" + SINGLE: WRONG},
            ["checkpoint-1/", "2/"],
        ),
        ({"x.safetensors": RIGHT, "y.safetensors": WRONG}, ["x.safetensors", "y.safetensors"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_weights_on_which_programs_disagree_are_refused(
    repo: Repository, tmp_path: Path, files: dict[str, State | bytes], candidates: list[str]
) -> None:
    repo.commit(write(tmp_path, files))
    with pytest.raises(InvalidInputError) as caught:
        repo.load("main")
    assert caught.value.code is ErrorCode.AMBIGUOUS
    for candidate in candidates:
        assert candidate in str(caught.value)
    assert "include=" in str(caught.value)
    live = {name: torch.full_like(tensor, 7) for name, tensor in RIGHT.items()}
    with casweights.Subscriber(repo) as subscriber, pytest.raises(InvalidInputError):
        subscriber.sync(live)
    assert all((tensor == 7).all() for tensor in live.values())
    for path, content in files.items():  # each file can be selected by its path
        if not isinstance(content, bytes):
            assert_same_state(repo.load("main", include=[path]), content)
            for name, tensor in content.items():
                assert repo.tensor("main", name, file=path).load().equal(tensor)


def test_a_tensor_only_in_other_files_is_found(repo: Repository, tmp_path: Path) -> None:
    files = {SINGLE: RIGHT, "optimizer.safetensors": state(3, "step"), "x/y.safetensors": WRONG}
    repo.commit(write(tmp_path, files))
    assert repo.tensor("main", "step").load().equal(state(3, "step")["step"])
    assert repo.load("main").keys() == RIGHT.keys()


def test_patterns_select_files_and_weights(repo: Repository, tmp_path: Path) -> None:
    files = SHARDED | {THREE: WRONG, "x/" + SINGLE: WRONG, "config.json": b"{}"}
    repo.commit(write(tmp_path, files))
    assert_same_state(repo.load("main", include="a"), {"a": RIGHT["a"]})
    assert_same_state(repo.load("main", include=[ONE, "b"]), RIGHT)
    assert_same_state(repo.load("main", include=["x/*"]), WRONG)
    assert repo.load("main", include=["config.json"]) == {}
    for include in (["x/*", "a"], ["model-*"]):
        with pytest.raises(InvalidInputError) as caught:
            repo.load("main", include=include)
        assert caught.value.code is ErrorCode.AMBIGUOUS
    for include in (["nothing*"], []):
        with pytest.raises(NotFoundError):
            repo.load("main", include=include)


def test_a_committed_state_loads_as_it_was(repo: Repository) -> None:
    nested = {"model": RIGHT, "tied": [RIGHT["a"]], "step": 3}
    repo.commit(nested)
    assert_same_state(repo.load("main"), nested)
    repo.commit({"step": 4})
    assert repo.load("main") == {"step": 4}


BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"weight_map": {"\xff": "x"}}',
    "no object": b"[]",
    "no map": b"{}",
    "a list": b'{"weight_map": ["a"]}',
    "no path": b'{"weight_map": {"a": 1}}',
    "a name twice": b'{"weight_map": {"a": "x", "a": "y"}}',
    "deep": b'{"weight_map": ' + b"[" * 100_000,
    "deep objects": b'{"weight_map": ' + b'{"a":' * 100_000,
    "a number of many digits": b'{"weight_map": ' + b"9" * 100_000 + b"}",
    "above": index(a=f"../{SINGLE}"),
    "above in the end": index(a=f"x/../../{SINGLE}"),
    "absolute": index(a=f"/{SINGLE}"),
    "of another system": index(a=f"..\\{SINGLE}"),
    "lone surrogate": b'{"weight_map": {"a": "\\ud800"}}',
    "a shard that is missing": index(a=ONE, b=THREE),
    "a tensor that is missing": index(a=ONE, c=ONE),
    "a file that holds none": index(a="config.json"),
    "itself": index(a=INDEX),
}


class Warnings(Reporter):
    """A reporter that collects warnings."""

    def __init__(self) -> None:
        self.codes: list[str] = []
        self.messages: list[str] = []

    def warned(self, code: str, message: str) -> None:
        self.codes.append(code)
        self.messages.append(message)


@pytest.mark.parametrize("folder", ["", "unet"])
@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_a_wrong_index_causes_a_warning_at_commit_and_an_error_at_load(
    tmp_path: Path, content: bytes, folder: str
) -> None:
    files: dict[str, State | bytes]
    files = {ONE: SHARDED[ONE], SINGLE: RIGHT, INDEX: content, "config.json": b"{}"}
    write(tmp_path, {posixpath.join(folder, path): file for path, file in files.items()})
    warnings = Warnings()
    with casweights.open(MemoryStore(), create=True, reporter=warnings) as store:
        version = store.commit(tmp_path)
        assert warnings.codes == ["bad-index"]
        assert posixpath.join(folder, INDEX) in warnings.messages[0]
        live = dict(RIGHT)
        with casweights.Subscriber(store) as subscriber:
            loads: list[Any] = [lambda: store.load(version), lambda: subscriber.sync(live)]
            if content not in (BAD["a shard that is missing"], BAD["a tensor that is missing"]):
                loads.append(lambda: store.tensor(version, "a"))
                loads.append(lambda: store.load(version, include=["a"]))
            for load in loads:
                with pytest.raises(InvalidInputError) as caught:
                    load()
                assert caught.value.code is ErrorCode.BAD_INDEX
                assert INDEX in str(caught.value)
        assert_same_state(store.load(version, include=[posixpath.join(folder, SINGLE)]), RIGHT)


def test_an_index_that_is_too_large_is_not_read(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_INDEX_SIZE", 1000)
    repo.commit(write(tmp_path, {ONE: RIGHT, INDEX: index(a=ONE, b=ONE) + b" " * 1000}))
    with pytest.raises(CasweightsError, match="larger than 1000 bytes") as caught:
        repo.load("main")
    assert caught.value.code is ErrorCode.BAD_INDEX


def test_a_correct_index_causes_no_warning(tmp_path: Path) -> None:
    warnings = Warnings()
    with casweights.open(MemoryStore(), create=True, reporter=warnings) as store:
        store.commit(write(tmp_path, SHARDED | {"index.json": b"{", "x.json": b"{"}))
    assert warnings.codes == []


def test_weights_stored_as_plain_bytes_are_refused(repo: Repository, tmp_path: Path) -> None:
    files = {SINGLE: RIGHT, "checkpoint-1/" + SINGLE: WRONG}
    repo.commit(write(tmp_path, files), opaque=[SINGLE])
    with pytest.raises(InvalidInputError, match="stored as plain bytes") as caught:
        repo.load("main")
    assert caught.value.code is ErrorCode.BAD_SAFETENSORS
