"""The independent reader and the library rebuild the same state dicts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.content.states import StateFile
from casweights.content.trees import leaves, rebuild
from casweights.errors import CasweightsError
from casweights.format.dtypes import DTYPES
from casweights.format.safetensors import TREE_KEY
from casweights.testing.strategies import state_dicts
from tests.lengths import examples
from tests.spec_states import describe_read, names_of_tensors

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
# Runs the reader where our package, numpy and torch cannot be imported.
ALONE = """
import runpy, sys
sys.modules.update(casweights=None, numpy=None, torch=None, safetensors=None)
sys.path.append(sys.argv.pop(1))
runpy.run_module("tools.spec.state", run_name="__main__")
"""


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    return import_module("tools.spec.state")


@hypothesis.settings(max_examples=examples(20))
@hypothesis.given(state=state_dicts(carried=True))
def test_any_state_is_rebuilt_as_the_library_loads_it(
    reader: ModuleType, state: dict[Any, Any]
) -> None:
    describe = import_module("tools.spec.golden").describe
    config = StoreConfig(chunk_size=64 * KiB)
    with (
        tempfile.TemporaryDirectory() as folder,
        casweights.open(Path(folder, "store"), create=True, config=config, workers=2) as repo,
    ):
        version = repo.commit(state)
        read = reader.read_state(Path(folder, "store"), str(version.id))
        loaded = repo.load(version)
    assert describe_read(read) == describe(loaded)
    assert ties(names_of_tensors(read)) == ties(
        [id(leaf) for _, leaf in leaves(loaded) if isinstance(leaf, torch.Tensor)]
    )


def ties(names: list[Any]) -> list[int]:
    """Return, for each name, the index of its first occurrence."""
    return [names.index(name) for name in names]


def test_the_reader_needs_neither_torch_nor_the_library(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "b": b"bytes", "t": (1, None)}
    with casweights.open(tmp_path / "store", create=True) as repo:
        repo.commit(state)
    command = [sys.executable, "-I", "-c", ALONE, str(ROOT), str(tmp_path / "store"), "main"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "'b': b'bytes'" in result.stdout


def test_the_example_on_the_page_is_what_the_library_writes() -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    w = torch.ones(2)
    state = {"a": {1: w, "x": (0.5, None)}, "b": [w, b"raw"]}
    assert str(state).replace(str(w), "w").replace("'", '"') in " ".join(page.split())
    tree = StateFile(state).outline.header.metadata[TREE_KEY]
    assert f"```text\n{tree}\n```" in page


def test_the_page_lists_dtypes_in_the_order_of_the_library() -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    assert " ".join(f"`{code}`" for code in reversed(DTYPES)) in " ".join(page.split())


TENSORS = {
    "w": torch.ones(2),
    "m": torch.ones(2, 2, dtype=torch.uint8),
    "h": torch.ones(1, dtype=torch.bfloat16),
    "i": torch.ones(3, dtype=torch.int8),
    "u": torch.ones(3, dtype=torch.uint8),
    "n": torch.tensor(1.5),
}


def read_both(reader: ModuleType, tree: str) -> tuple[Any, Any]:
    """Return the states that the library and the reader rebuild; None for a malformed tree."""
    raw = casweights_header(tree)
    data = b"".join(t.reshape(-1).view(torch.uint8).numpy().tobytes() for t in TENSORS.values())
    results: list[Any] = []
    for rebuilt, errors in (
        (lambda: rebuild(dict(TENSORS), {TREE_KEY: tree}), CasweightsError),
        (lambda: reader.rebuild(raw, data), reader.FAILURES),
    ):
        try:
            results.append(rebuilt())
        except errors:
            results.append(None)
    return results[0], results[1]


def casweights_header(tree: str) -> bytes:
    codes = {torch.float32: "F32", torch.uint8: "U8", torch.int8: "I8", torch.bfloat16: "BF16"}
    table: dict[str, Any] = {"__metadata__": {TREE_KEY: tree}}
    start = 0
    for name, tensor in TENSORS.items():
        end = start + tensor.nbytes
        dtype, shape = codes[tensor.dtype], list(tensor.shape)
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text


MALFORMED = [
    "",
    "{}",
    "[]",
    '["dict"]',
    '["list",[]]',
    '["value",1]',
    '["tensor","w"]',
    '["dict",[],[]]',
    '["dict",{}]',
    '["dict",["ab"]]',
    '["dict",[["a",["tensor","none"]]]]',
    '["dict",[["a",["tensor",["w"]]]]]',
    '["dict",[["a",{"tensor":1,"w":2}]]]',
    '["dict",[["a","ab"]]]',
    '["dict",[["a",["set",[]]]]]',
    '["dict",[["a",["list",{}]]]]',
    '["dict",[["a",["tuple","ab"]]]]',
    '["dict",[["a",["value",[]]]]]',
    '["dict",[["a",["value",{}]]]]',
    '["dict",[["a",["value","\\ud800"]]]]',
    '["dict",[["\\ud800",["value",1]]]]',
    '["dict",[["a",["value",1]],["a",["value",1]]]]',
    '["dict",[[null,["value",1]]]]',
    '["dict",[[true,["value",1]]]]',
    '["dict",[[1.0,["value",1]]]]',
    '["dict",[[[],["value",1]]]]',
    '["dict",[["a",["array","h"]]]]',
    '["dict",[["a",["scalar","w"]]]]',
    '["dict",[["a",["scalar","h"]]]]',
    '["dict",[["a",["bytes","m"]]]]',
    '["dict",[["a",["bytes","i"]]]]',
    '["dict",[["a",["stream","w"]]]]',
    '["dict",[["a",["value",' + "1" * 5_000 + "]]]]",
    '["dict",[["a",' + '["list",[' * 100_000 + "]]" * 100_000 + "]]]",
]


@pytest.mark.parametrize("tree", MALFORMED, ids=lambda tree: f"{tree:.50}")
def test_malformed_trees_are_refused_by_both(reader: ModuleType, tree: str) -> None:
    assert read_both(reader, tree) == (None, None)


@pytest.mark.parametrize(
    "tree",
    [
        '["dict",[]]',
        ' [ "dict", [ [ "a", [ "value", -0 ] ] ] ]',
        '["dict",[["a",["value",1e999]],["1",["value",-Infinity]],[1,["value",1.0]]]]',
        '["dict",[["a",["bytes","u"]],["b",["stream","u"]],["c",["array","u"]]]]',
        '["dict",[["a",["tensor","u"]],["b",["scalar","n"]],["c",["array","n"]]]]',
    ],
)
def test_odd_trees_are_read_alike_by_both(reader: ModuleType, tree: str) -> None:
    loaded, read = read_both(reader, tree)
    assert describe_read(read) == import_module("tools.spec.golden").describe(loaded)
