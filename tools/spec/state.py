"""Rebuild a state dict from a version of a casweights store, by docs/format.md alone.

It is part of `reader` and needs no torch, numpy or library either: tensors and arrays are
represented by their dtype, shape and bytes.

    python -m tools.spec.state STORE REF

It prints the state dict, with the SHA-256 of each tensor's bytes in place of the bytes.
"""

import argparse
import hashlib
import io
import json
import pprint
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tools.spec.chunks import FAILURES, StoreError, is_text, need
from tools.spec.header import parse_tensors
from tools.spec.reader import find_snapshot, read_config, read_snapshot

STATE_FILE = "model.safetensors"
TREE = "casweights.tree"
NUMPY_DTYPES = {
    *("BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64", "C64"),
}


class Value(NamedTuple):
    """A tensor, a numpy array or a numpy scalar.

    Nodes that name the same tensor of the file have the same `name`.
    """

    kind: str
    name: str
    dtype: str
    shape: list[int]
    data: bytes


def read_state(store: Path, ref: str) -> dict[Any, Any]:
    """Return the state dict of a version."""
    chunking = read_config(store)
    files, chunks = read_snapshot(store, find_snapshot(store, ref), chunking)
    need([file.path for file in files] == [STATE_FILE], "the version is not a state dict")
    data = b"".join(chunks.read(*chunk) for chunk in files[0].chunks)
    return rebuild(files[0].header, data)


def rebuild(header: bytes, data: bytes) -> dict[Any, Any]:
    """Return the state dict of a file, from its header and the bytes after it."""
    entries, metadata = parse_tensors(header, STATE_FILE)
    tensors = {
        name: Value("tensor", name, entry.dtype, entry.shape, data[entry.begin : entry.end])
        for name, entry in entries.items()
    }
    if TREE not in metadata:
        return dict(tensors)
    state = rebuild_node(json.loads(metadata[TREE]), tensors)
    need(isinstance(state, dict), "the tree is not a dict")
    return dict(state)


def rebuild_node(node: Any, tensors: dict[str, Value]) -> Any:
    need(type(node) is list and len(node) == 2, "a node is not an array of two")
    kind, content = node
    if kind == "value":
        is_value = content is None or isinstance(content, bool | int | float) or is_text(content)
        need(is_value, "a value is not null, a boolean, a number or a string")
        return content
    if kind in ("dict", "list", "tuple"):
        need(type(content) is list, f"a {kind} is not an array")
        if kind == "dict":
            return rebuild_dict(content, tensors)
        items = [rebuild_node(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    need(kind in ("tensor", "array", "scalar", "bytes", "stream"), f"unknown node {kind!r}")
    need(isinstance(content, str) and content in tensors, f"there is no tensor {content!r}")
    return carried(kind, tensors[content])


def rebuild_dict(items: list[Any], tensors: dict[str, Value]) -> dict[Any, Any]:
    state: dict[Any, Any] = {}
    for item in items:
        need(type(item) is list and len(item) == 2, "an item of a dict is not an array of two")
        key, node = item
        need(type(key) is int or is_text(key), "a key is not a string or an integer")
        need(key not in state, f"the key {key!r} occurs twice")
        state[key] = rebuild_node(node, tensors)
    return state


def carried(kind: str, tensor: Value) -> Any:
    """Return the value that a node of this kind stores in a tensor."""
    if kind in ("bytes", "stream"):
        need(
            tensor.dtype == "U8" and len(tensor.shape) == 1,
            f"{kind} in a tensor that is not U8 of one dimension",
        )
        return tensor.data if kind == "bytes" else io.BytesIO(tensor.data)
    if kind != "tensor":
        need(tensor.dtype in NUMPY_DTYPES, f"numpy has no {tensor.dtype}")
        need(kind == "array" or not tensor.shape, "a scalar with dimensions")
    return tensor._replace(kind=kind)


def outline(state: Any) -> Any:
    """Return a copy of the state with hashes in place of tensors' bytes."""
    if isinstance(state, Value):
        return (*state[:4], hashlib.sha256(state.data).hexdigest())
    if isinstance(state, dict):
        return {key: outline(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(outline, state))
    return state


def main() -> int:
    parser = argparse.ArgumentParser(description="Print a state dict of a local casweights store.")
    parser.add_argument("store", type=Path)
    parser.add_argument("ref", help="a full snapshot ID, a branch or a tag")
    args = parser.parse_args()
    try:
        pprint.pp(outline(read_state(args.store, args.ref)))
    except FAILURES as error:
        is_told = isinstance(error, StoreError | OSError)
        print(f"error: {str(error) if is_told else repr(error):.500}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
