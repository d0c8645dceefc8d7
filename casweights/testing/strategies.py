"""Hypothesis strategies for tensors, state dicts, safetensors files and model directories.

They generate every legal value that an adapter has to handle: all dtypes and bit patterns, empty
and non-contiguous tensors, tied weights, odd file names, and links.

Example:
    >>> @given(state_dicts())
    ... def test_a_state_survives_a_round_trip(state):
    ...     assert_same_state(load(save(state)), state)
"""

from __future__ import annotations

import io
import json
import math
import unicodedata
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from casweights.format.dtypes import DTYPES, DType
from casweights.format.portable import part_problem
from casweights.testing.trees import Link, Tree

State = dict[str, Any]
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)

TORCH_DTYPES = [
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "bfloat16", "float32", "float64", "complex64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz"),
        "float4_e2m1fn_x2",
    )
    if hasattr(torch, name)
]
_NUMPY_DTYPES = [
    *("bool", "u1", "i1", "<u2", "<i2", "<f2", "<u4", "<i4", "<f4", "<u8", "<i8", "<f8", "<c8")
]
_EDGES = [0, 1, 2, 65_535, 65_536, 65_537, 3 * 65_536, 200_001]  # bytes, around chunks of 64 KiB


@st.composite
def contents(draw: st.DrawFn, size: int | None = None) -> bytes:
    """Bytes: arbitrary ones up to 64; beyond that random, normal, repeated or zero.

    Args:
        draw: Supplied by Hypothesis.
        size: Number of bytes; by default any number up to several chunks of 64 KiB.
    """
    if size is None:
        size = draw(st.one_of(st.integers(0, 200), st.sampled_from(_EDGES)))
    if size <= 64:  # Hypothesis draws bytes one by one: too slow for more
        return draw(st.binary(min_size=size, max_size=size))
    kind = draw(st.sampled_from(["zero", "random", "normal", "repeated"]))
    rng = np.random.default_rng(draw(st.integers(0, 5)))  # few seeds: files share chunks
    if kind == "zero":
        return bytes(size)
    if kind == "normal":
        return rng.normal(0, 0.02, size // 4 + 1).astype("<f4").tobytes()[:size]
    if kind == "repeated":
        period = draw(st.integers(1, 100))
        return (rng.bytes(period) * (size // period + 1))[:size]
    return rng.bytes(size)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Shapes of 0 to 4 dimensions, sometimes empty, sometimes larger than one chunk."""
    small = st.lists(st.integers(0, 5), max_size=4)
    large = st.sampled_from([[40_000], [3, 70_000], [200, 7, 33], [65_536], [131_071]])
    return tuple(draw(st.one_of(small, small, small, large)))


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of any dtype, with any bits, in any memory layout."""
    dtype = draw(st.sampled_from(TORCH_DTYPES))
    shape = draw(shapes())
    if dtype == getattr(torch, "float4_e2m1fn_x2", None) and not shape:
        shape = (1,)  # safetensors cannot express half a byte
    layout = draw(st.sampled_from(["plain", "plain", "transposed", "strided", "expanded", "lazy"]))
    stored = shape
    # The shape in memory, from which the layout makes a view of the drawn shape.
    if layout == "transposed":
        stored = shape[::-1]
    elif layout == "strided" and shape:
        stored = (*shape[:-1], 2 * shape[-1] + 1)
    elif layout == "expanded" and shape:
        stored = (1, *shape[1:])
    tensor = from_bytes(draw(contents(math.prod(stored) * dtype.itemsize)), dtype, stored)
    if layout == "transposed":
        return tensor.permute(tuple(reversed(range(tensor.dim()))))
    if layout == "strided" and shape:
        return tensor[..., 1::2]
    if layout == "expanded" and shape:
        return tensor.expand(shape)
    return tensor.conj() if layout == "lazy" and dtype.is_complex else tensor


def from_bytes(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor that holds exactly these bytes."""
    if not data:  # `frombuffer` refuses empty buffers
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """Numpy arrays and scalars with any bits."""
    dtype = draw(st.sampled_from(_NUMPY_DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    data = draw(contents(math.prod(shape) * np.dtype(dtype).itemsize))
    array = np.frombuffer(data, dtype).reshape(shape)
    return array[()] if not shape and draw(st.booleans()) else array


def state_dicts(*, carried: bool = False) -> st.SearchStrategy[State]:
    """State dicts, flat or nested, in which some tensors are tied.

    Args:
        carried: Whether the states also contain numpy arrays and scalars, bytes and streams.
    """
    streams = contents().map(io.BytesIO)
    others = (arrays(), contents(), streams) if carried else ()
    value = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, *others)
    return st.lists(tensors(), min_size=1, max_size=5).flatmap(lambda pool: _nested(pool, value))


def _nested(pool: list[torch.Tensor], value: st.SearchStrategy[Any]) -> st.SearchStrategy[State]:
    """State dicts of these tensors; a tensor that occurs twice is tied."""
    tensor = st.sampled_from(pool)
    keys = st.one_of(TEXT, st.integers(-3, 100), st.sampled_from(["a", "b", "a.b", "tensor"]))
    nested = st.recursive(
        st.one_of(tensor, tensor, value),
        lambda children: st.one_of(
            st.dictionaries(keys, children, max_size=4),
            st.lists(children, max_size=3),
            st.lists(children, max_size=3).map(tuple),
        ),
        max_leaves=12,
    )
    flat = {f"layers.{n}": tensor for n, tensor in enumerate(pool)}
    tied = st.dictionaries(TEXT, tensor, max_size=6)
    return st.one_of(
        st.dictionaries(keys, nested, max_size=5),
        tied.map(lambda names: flat | names),
        tied.map(lambda names: {"model": flat, "tied": list(names.values())}),
        st.just(flat),
    )


@st.composite
def safetensors_files(draw: st.DrawFn, *, names: st.SearchStrategy[str] = TEXT) -> bytes:
    """Valid safetensors files, in any form that some program may write.

    Headers vary in padding, indentation, order of keys and place of the metadata; tensors are
    stored in any order.

    Args:
        draw: Supplied by Hypothesis.
        names: Strategy for names of tensors.
    """
    chosen = draw(st.lists(names.filter(lambda k: k != "__metadata__"), max_size=6, unique=True))
    table, data = {}, b""
    for name in chosen:
        dtype = draw(st.sampled_from(sorted(DTYPES.values(), key=lambda d: d.code)))
        shape = _whole_bytes(dtype, draw(shapes()))
        content = draw(contents(dtype.nbytes(shape)))
        offsets = [len(data), len(data) + len(content)]
        table[name] = {"dtype": dtype.code, "shape": list(shape), "data_offsets": offsets}
        data += content
    entries: list[tuple[str, Any]] = list(table.items())
    if draw(st.booleans()):
        entries.append(("__metadata__", draw(st.dictionaries(TEXT, TEXT, max_size=3))))
    return (
        encode_header(
            dict(draw(st.permutations(entries))),
            indent=draw(st.sampled_from([None, 1])),
            ensure_ascii=draw(st.booleans()),
            padding=draw(st.integers(0, 9)),
        )
        + data
    )


def encode_header(
    table: dict[str, Any],
    *,
    indent: int | None = None,
    ensure_ascii: bool = False,
    padding: int = 0,
) -> bytes:
    """Return a safetensors header, including its 8 bytes of length.

    Args:
        table: The JSON object of the header.
        indent: Spaces of indentation; None for one line.
        ensure_ascii: Whether to escape non-ASCII characters.
        padding: Number of spaces after the JSON.
    """
    text = json.dumps(table, indent=indent, ensure_ascii=ensure_ascii).encode() + b" " * padding
    return len(text).to_bytes(8, "little") + text


def _whole_bytes(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape whose elements fill whole bytes, also if one takes only 4 or 6 bits."""
    if dtype.nbytes(shape) is None:
        return (*shape, 4)
    return shape


@st.composite
def sharded_models(draw: st.DrawFn) -> Tree:
    """Trees with the safetensors shards of one model and the index that maps weights to them."""
    count = draw(st.integers(1, 3))
    tree: Tree = {}
    weight_map = {}
    for n in range(count):
        shard = f"model-{n + 1:05}-of-{count:05}.safetensors"
        names = st.integers(0, 50).map(f"layers.{n}.{{}}.weight".format)
        content = draw(safetensors_files(names=names))
        tree[shard] = content
        length = int.from_bytes(content[:8], "little")
        weight_map.update(dict.fromkeys(json.loads(content[8 : 8 + length]), shard))
    weight_map.pop("__metadata__", None)
    tree["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return tree


def file_names() -> st.SearchStrategy[str]:
    """File names that are valid on every common file system."""
    letters = st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="/\\:")
    names = st.one_of(
        st.text(letters, min_size=1, max_size=10),
        st.sampled_from(["config.json", "tokenizer.json", "README.md", "optimizer.pt", ".hidden"]),
    )
    return names.filter(lambda name: name != ".git" and part_problem(name) is None)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Model directories: nested folders, all kinds of files, and links to files."""
    files = st.one_of(
        contents().map(lambda content: ("", content)),
        safetensors_files().map(lambda content: (".safetensors", content)),
    )
    nested = st.recursive(
        files,
        lambda children: st.dictionaries(file_names(), children, max_size=3),
        max_leaves=6,
    )
    tree = dict(draw(sharded_models())) if draw(st.booleans()) else {}
    _flatten(draw(st.dictionaries(file_names(), nested, max_size=4)), "", tree)
    if not tree:
        tree["empty"] = b""
    targets = draw(st.lists(st.sampled_from(sorted(tree)), max_size=2))
    tree.update({f"link-{n}": Link(target) for n, target in enumerate(targets)})
    return tree


def _flatten(folder: dict[str, Any], prefix: str, tree: Tree) -> None:
    """Add a nested dict of files to `tree`, except names that collide on some file system."""
    taken = {_fold(path) for path in tree}
    for name, node in folder.items():
        path = f"{prefix}{name}"
        suffix = "" if isinstance(node, dict) else node[0]
        if _fold(path + suffix) in taken:
            continue
        taken.add(_fold(path + suffix))
        if isinstance(node, dict):
            _flatten(node, f"{path}/", tree)
        else:
            tree[path + suffix] = node[1]


def _fold(path: str) -> str:
    # macOS and Windows ignore case; macOS also normalizes Unicode.
    return unicodedata.normalize("NFC", path.casefold())
