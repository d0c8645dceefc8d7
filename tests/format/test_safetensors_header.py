"""Parsing and building headers of safetensors files."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

from casweights.errors import ErrorCode, InvalidInputError
from casweights.format.dtypes import DTYPES
from casweights.format.safetensors import (
    MAX_HEADER_SIZE,
    build_header,
    header_size,
    parse_header,
    replace_metadata,
)
from casweights.testing.strategies import (
    TEXT,
    TORCH_DTYPES,
    encode_header,
    from_bytes,
    safetensors_files,
)


def entry(dtype: Any, shape: Any, start: Any, stop: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def raw(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def test_parse_returns_tensors_and_metadata() -> None:
    header = parse_header(
        encode_header(
            {
                "b": entry("F32", [2, 3], 4, 28),
                "__metadata__": {"format": "pt"},
                "a": entry("BF16", [2], 0, 4),
                "empty": entry("I64", [3, 0], 4, 4),
                "scalar": entry("U8", [], 28, 29),
            },
            padding=3,
        ),
        29,
    )
    assert header.metadata == {"format": "pt"}
    assert header.data_size == 29
    assert [(t.name, t.dtype.code, t.shape, t.start, t.nbytes) for t in header.tensors] == [
        ("a", "BF16", (2,), 0, 4),
        ("empty", "I64", (3, 0), 4, 0),
        ("b", "F32", (2, 3), 4, 24),
        ("scalar", "U8", (), 28, 1),
    ]


def test_shapes_of_packed_types_count_elements() -> None:
    table = {"a": entry("F4", [3, 4], 0, 6), "b": entry("F6_E2M3", [4], 6, 9)}
    assert [t.nbytes for t in parse_header(encode_header(table), 9).tensors] == [6, 3]


def test_a_header_without_tensors_is_valid() -> None:
    assert parse_header(raw(b"{}"), 0).tensors == ()
    assert parse_header(raw(b'{"__metadata__":{}}'), 0).metadata == {}


@hypothesis.given(safetensors_files())
def test_parse_agrees_with_the_reference_library(file: bytes) -> None:
    """Both find the same tensors at the same offsets."""
    size = header_size(file[:8], len(file))
    header = parse_header(file[:size], len(file) - size)
    theirs = dict(safetensors.deserialize(file))  # type: ignore[no-untyped-call]
    assert theirs.keys() == {tensor.name for tensor in header.tensors}
    for tensor in header.tensors:
        assert theirs[tensor.name]["dtype"] == tensor.dtype.code
        assert tuple(theirs[tensor.name]["shape"]) == tensor.shape
        start = size + tensor.start
        assert bytes(theirs[tensor.name]["data"]) == file[start : start + tensor.nbytes]


GOOD = entry("U8", [4], 0, 4)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"a": entry("U8", [4], 0, 3)}, "not its shape's size"),
        ({"a": entry("U8", [5], 0, 4)}, "not its shape's size"),
        ({"a": entry("F4", [3], 0, 1)}, "not its shape's size"),
        ({"a": entry("U8", [4], 4, 0)}, "not its shape's size"),
        ({"a": entry("U8", [3], 1, 4)}, "does not start at the first"),
        ({"a": entry("U8", [3], 0, 3)}, "end at byte 3 of 4"),
        ({"a": entry("U8", [5], 0, 5)}, "end at byte 5 of 4"),
        ({"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 2, 4)}, "overlap"),
        ({"a": GOOD, "b": GOOD}, "overlap"),
        ({"a": entry("U8", [1], 0, 1), "b": entry("U8", [2], 2, 4)}, "leave a hole"),
        ({"a": entry("Q8", [4], 0, 4)}, "unknown dtype"),
        ({"a": entry(8, [4], 0, 4)}, "unknown dtype"),
        ({"a": entry("u8", [4], 0, 4)}, "unknown dtype"),
        ({"a": entry("U8", 4, 0, 4)}, "impossible shape"),
        ({"a": entry("U8", [-4], 0, 4)}, "impossible shape"),
        ({"a": entry("U8", [4.0], 0, 4)}, "impossible shape"),
        ({"a": entry("U8", [True, 4], 0, 4)}, "impossible shape"),
        ({"a": entry("U8", [1 << 63], 0, 4)}, "not its shape's size"),
        ({"a": entry("U8", [1 << 64], 0, 4)}, "impossible shape"),
        ({"a": entry("U8", [1 << 62, 1 << 62, 1 << 62], 0, 4)}, "not its shape's size"),
        ({"a": entry("U8", [4], -1, 3)}, "impossible data_offsets"),
        ({"a": entry("U8", [4], 0, 1 << 64)}, "impossible data_offsets"),
        ({"a": entry("U8", [4], "0", 4)}, "impossible data_offsets"),
        ({"a": {**GOOD, "data_offsets": [0, 4, 4]}}, "impossible data_offsets"),
        ({"a": {**GOOD, "data_offsets": None}}, "impossible data_offsets"),
        ({"a": {"dtype": "U8", "shape": [4]}}, "dtype, shape and data_offsets once"),
        ({"a": [1, 2]}, "dtype, shape and data_offsets once"),
        ({"a": GOOD, "__metadata__": ["x"]}, "__metadata__ is not a map"),
        ({"a": GOOD, "__metadata__": {"n": 1}}, "__metadata__ is not a map"),
        ({"a": GOOD, "__metadata__": {"\ud800": "lone"}}, "half of a surrogate pair"),
        ({"\ud800": GOOD}, "half of a surrogate pair"),
        ({}, "end at byte 0 of 4"),
    ],
)
def test_inconsistent_headers_are_refused(table: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        parse_header(encode_header(table, ensure_ascii=True), 4)
    assert caught.value.code is ErrorCode.BAD_SAFETENSORS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{", "not JSON"),
        (b"{}x", "not JSON"),
        (b'{"a":', "not JSON"),
        (b'{"\xff":1}', "not JSON"),
        (b'{"__metadata__":{},"__metadata__":{}}', "__metadata__ twice"),
        (b'{"a":{"dtype":"U8","dtype":"U8"}}', "once each"),
        (b"{" * 100_000, "not JSON"),
        (b'{"a":' + b"[" * 100_000, "not JSON"),
    ],
)
def test_other_bytes_are_not_a_header(text: bytes, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        parse_header(raw(text), 0)


@pytest.mark.parametrize(
    ("first", "file_size", "why"),
    [
        (b"", 0, "too few"),
        (b"1234567", 7, "too few"),
        ((3).to_bytes(8, "little"), 10, "truncated"),
        ((MAX_HEADER_SIZE + 1).to_bytes(8, "little"), 1 << 40, "above the limit"),
        (b"\xff" * 8, 1 << 40, "above the limit"),
    ],
)
def test_impossible_lengths_are_refused(first: bytes, file_size: int, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        header_size(first, file_size)


def test_a_header_with_another_length_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="length is wrong"):
        parse_header(raw(b"{}") + b" ", 0)


def test_build_writes_what_the_reference_library_writes() -> None:
    """Two tensors of every dtype are passed in another order."""
    state = {
        f"{n}.{dtype}": from_bytes(bytes(8 * dtype.itemsize), dtype, (4, 2))
        for dtype in TORCH_DTYPES
        for n in ("b", "a")
    }
    theirs = safetensors.torch.save(state, {"format": "pt"})
    table = json.loads(theirs[8 : header_size(theirs[:8], len(theirs))])
    del table["__metadata__"]
    layout = [(name, DTYPES[e["dtype"]], tuple(e["shape"])) for name, e in table.items()]
    assert len({dtype for _, dtype, _ in layout}) == len(TORCH_DTYPES)
    header = build_header(reversed(layout), {"format": "pt"})
    assert theirs[: len(header)] == header


def test_build_escapes_as_the_reference_library_does() -> None:
    name = 'quote" back\\slash \x01 \x7f \u2028 é 💾'
    theirs = safetensors.torch.save({name: torch.zeros(1)}, {"format": name})
    assert theirs[:-4] == build_header([(name, DTYPES["F32"], (1,))], {"format": name})


def test_parse_returns_what_was_built() -> None:
    layout = [(code, dtype, (3, 8)) for code, dtype in DTYPES.items()]
    size = sum(dtype.bits * 3 for _, dtype, _ in layout)
    header = build_header(layout, {"k": "v"})
    parsed = parse_header(header, size)
    assert {(t.name, t.dtype, t.shape) for t in parsed.tensors} == set(layout)
    assert parsed.metadata == {"k": "v"}
    assert len(header) % 8 == 0
    assert json.loads(header[8:])["__metadata__"] == {"k": "v"}


def test_build_refuses_tensors_without_whole_bytes() -> None:
    with pytest.raises(InvalidInputError, match="a whole number of bytes"):
        build_header([("a", DTYPES["F4"], (3,))], {})


@hypothesis.given(
    names=st.lists(TEXT, max_size=3, unique=True),
    old=st.dictionaries(TEXT, TEXT, min_size=1, max_size=3),
    new=st.dictionaries(TEXT, TEXT, min_size=1, max_size=3),
)
def test_replacing_metadata_equals_building_with_it(
    names: list[str], old: dict[str, str], new: dict[str, str]
) -> None:
    layout = [(f"{name} ", DTYPES["U8"], (3,)) for name in names]
    replaced = replace_metadata(build_header(layout, old), old, new)
    assert replaced == build_header(layout, new)
