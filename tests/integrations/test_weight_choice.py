"""The weights of a version are those that hosts load from the same folder.

Folders with several sets of weights are generated. Transformers loads each with its own loader.
vLLM's rule (the shards that an index names, or else every file in the top folder) is written out
here. A version is refused only where the two differ, or where one file overwrites another's.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import casweights
from casweights.errors import ErrorCode, InvalidInputError
from casweights.stores.memory import MemoryStore

transformers = pytest.importorskip("transformers")

from transformers import PretrainedConfig, PreTrainedModel  # noqa: E402

from casweights.integrations.transformers import from_pretrained  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    State = dict[str, torch.Tensor]

NAMES = ("a", "b", "c")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
FOLDERS = 60


class TinyConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    model_type = "casweights-tiny"


class Tiny(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Three parameters."""

    config_class = TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        for name in NAMES:
            self.register_parameter(name, torch.nn.Parameter(torch.zeros(2)))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: Any) -> None:
        pass


def state(draw: random.Random, names: tuple[str, ...], versions: int) -> State:
    """Tensors, each from one of several saves."""
    return {name: torch.full((2,), draw.randrange(versions) + ord(name) / 128) for name in names}


def folder(draw: random.Random, directory: Path) -> None:
    """Write a folder like those that saves, exports and downloads leave behind."""
    directory.mkdir()
    TinyConfig().save_pretrained(directory)
    versions = draw.choice((1, 3))  # with a single save, all files are copies
    shards = {shard: tuple(n for n in NAMES if draw.random() < 0.6) for shard in SHARDS}
    files: dict[str, State] = {}
    for shard, names in shards.items():
        if names and draw.random() < 0.7:
            files[shard] = state(draw, names, versions)
    if draw.random() < 0.4:
        files[SINGLE] = state(draw, NAMES if draw.random() < 0.8 else NAMES[:2], versions)
    others = ("model.fp16.safetensors", "consolidated.safetensors", "adapter_model.safetensors")
    for path in (*others, f"checkpoint-1/{SINGLE}", f"original/{SHARDS[0]}", "zz/x.safetensors"):
        if draw.random() < 0.3:
            files[path] = state(draw, NAMES, 9)
    for path, content in files.items():
        (directory / path).parent.mkdir(exist_ok=True)
        save_file(content, directory / path, metadata={"format": "pt"})
    if draw.random() < 0.7:  # an index, which mostly names existing tensors
        having = {name: [s for s in SHARDS if name in files.get(s, {})] for name in NAMES}
        named = {name: draw.choice(having[name]) for name in NAMES if having[name]}
        if draw.random() < 0.2:
            named[draw.choice(NAMES)] = draw.choice(SHARDS)
        if named:
            text = json.dumps({"metadata": {}, "weight_map": named})
            (directory / INDEX).write_text(text)


def in_transformers(directory: Path) -> State | None:
    """The weights that transformers loads; None if it refuses to."""
    try:
        loaded: Any = Tiny.from_pretrained(directory, output_loading_info=True)
    except OSError:
        return None
    model, info = loaded
    assert not info["unexpected_keys"]
    return {n: t.detach() for n, t in model.named_parameters() if n not in info["missing_keys"]}


def in_vllm(directory: Path) -> Iterator[State]:
    """The weights in each file that vLLM reads."""
    paths = sorted(directory.glob("*.safetensors"))
    if (directory / INDEX).exists():
        named = json.loads((directory / INDEX).read_bytes())["weight_map"]
        paths = [path for path in paths if path.name in named.values()]
    else:
        paths = [path for path in paths if path.name == SINGLE or path.name in SHARDS]
    return (load_file(path) for path in paths)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def is_whole(directory: Path) -> bool:
    """Whether everything that an index names exists; True without an index."""
    if not (directory / INDEX).exists():
        return True
    named = json.loads((directory / INDEX).read_bytes())["weight_map"]
    return all(
        (directory / path).exists() and name in load_file(directory / path)
        for name, path in named.items()
    )


def may_be_refused(directory: Path) -> bool:
    """Whether hosts load different weights, or the order of the files matters."""
    theirs = in_transformers(directory)
    merged: State = {}
    for part in in_vllm(directory):
        if any(name in merged and not merged[name].equal(part[name]) for name in part):
            return True
        merged |= part
    return theirs is None or not same(theirs, merged)


def test_loaded_weights_are_those_that_hosts_load(tmp_path: Path) -> None:
    draw = random.Random(0)
    outcomes: dict[str, int] = {}
    with casweights.open(MemoryStore(), create=True) as store:
        for number in range(FOLDERS):
            directory = tmp_path / str(number)
            folder(draw, directory)
            store.commit(directory)
            try:
                ours = store.load("main")
            except InvalidInputError as error:
                outcome = error.code.value
            else:
                outcome = "loaded"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
            if outcome == ErrorCode.BAD_INDEX:
                assert not is_whole(directory)
            elif outcome == ErrorCode.AMBIGUOUS:
                assert may_be_refused(directory)
            elif (theirs := in_transformers(directory)) is not None:
                assert same(ours, theirs)
                if theirs.keys() == set(NAMES):
                    model = from_pretrained(store, "main", Tiny)
                    assert same({n: t.detach() for n, t in model.named_parameters()}, theirs)
    assert outcomes.keys() == {"loaded", "ambiguous", "bad-index"}
    assert outcomes["loaded"] > FOLDERS / 3
