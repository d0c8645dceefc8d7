"""Malformed safetensors files are refused by name, or kept bit for bit as opaque bytes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights import ErrorCode, InvalidInputError
from casweights.format.safetensors import MAX_HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def file_with(
    header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None
) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(
    start: Any = 0, stop: Any = 4, shape: Any = (4,), dtype: Any = "U8", **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop], **more}


def one(**fields: Any) -> bytes:
    return file_with({"t": tensor(**fields)}, bytes(4))


def without(key: str) -> bytes:
    entry = tensor()
    del entry[key]
    return file_with({"t": entry}, bytes(4))


SOUND = file_with({"t": tensor()}, b"abcd")

MALFORMED = {
    "empty": b"",
    "shorter than a length": bytes(7),
    "only a length": bytes(8),
    "header cut": SOUND[:20],
    "data cut": SOUND[:-1],
    "surplus data": SOUND + b"x",
    "length beyond the file": file_with({"t": tensor()}, bytes(4), 10_000),
    "length above the limit": file_with({}, b"", MAX_HEADER_SIZE + 1),
    "length of 64 bits": file_with({}, b"", 2**64 - 1),
    "length too small": file_with({"t": tensor()}, bytes(4), 5),
    "length into the data": file_with({"t": tensor()}, bytes(4), len(SOUND) - 8),
    "not JSON": file_with(b"{nonsense}"),
    "JSON that ends early": file_with(b'{"t": '),
    "JSON and more": file_with(b"{} {}"),
    "an array": file_with(b"[]"),
    "null": file_with(b"null"),
    "leading byte order mark": file_with(b"\xef\xbb\xbf{}"),
    "not UTF-8": file_with(b'{"\xff": 1}'),
    "UTF-16": file_with("{}".encode("utf-16-le")),
    "lone surrogate": file_with(b'{"\\ud800": ' + json.dumps(tensor()).encode() + b"}", bytes(4)),
    "nested too deeply": file_with(b'{"t":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "field twice": file_with(
        b'{"t": {"dtype": "U8", "dtype": "I8", "shape": [4], "data_offsets": [0, 4]}}', bytes(4)
    ),
    "metadata is a list": file_with({"__metadata__": []}),
    "metadata holds a number": file_with({"__metadata__": {"a": 1}}),
    "metadata holds a surrogate": file_with(b'{"__metadata__": {"a": "\\udfff"}}'),
    "tensor is a number": file_with({"t": 1}),
    "no dtype": without("dtype"),
    "no shape": without("shape"),
    "no offsets": without("data_offsets"),
    "unknown dtype": one(dtype="U3"),
    "dtype is a list": one(dtype=["U8"]),
    "dtype is null": one(dtype=None),
    "shape is a number": one(shape=4),
    "negative dimension": one(shape=[-4]),
    "two negative dimensions": one(shape=[-2, -2]),
    "fractional dimension": one(shape=[4.0]),
    "boolean dimension": one(shape=[4, True]),
    "dimension as text": one(shape=["4"]),
    "dimension of 65 bits": one(shape=[2**64]),
    "dimension of 5000 digits": file_with(
        b'{"t": {"dtype": "U8", "shape": [1%s], "data_offsets": [0, 4]}}' % (b"0" * 5000), bytes(4)
    ),
    "product of 2^64 elements": one(shape=[2**32, 2**32], stop=0),
    "product that wraps to 4": one(shape=[2**62 + 1, 4]),
    "too many dimensions": one(shape=[2**62] * 300_000),
    "shape and offsets differ": one(shape=[3]),
    "half a byte": one(dtype="F4", shape=[7]),
    "offsets reversed": one(start=4, stop=0),
    "one offset": file_with({"t": {**tensor(), "data_offsets": [4]}}, bytes(4)),
    "offsets as text": one(start="0"),
    "negative offset": one(start=-4, stop=0),
    "offset beyond the file": one(start=0, stop=2**62, shape=[2**62]),
    "does not start at 0": file_with({"t": tensor(4, 8)}, bytes(8)),
    "overlap": file_with({"a": tensor(0, 4), "b": tensor(2, 6)}, bytes(6)),
    "same bytes twice": file_with({"a": tensor(0, 4), "b": tensor(0, 4)}, bytes(4)),
    "inside another": file_with({"a": tensor(0, 4), "b": tensor(1, 3, [2])}, bytes(4)),
    "hole": file_with({"a": tensor(0, 4), "b": tensor(6, 10)}, bytes(10)),
    "empty tensor beyond the end": file_with({"a": tensor(0, 4), "b": tensor(9, 9, [0])}, bytes(4)),
    "data without tensors": file_with({}, bytes(4)),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_file_is_refused_by_name_and_accepted_as_opaque(
    tmp_path: Path, content: bytes
) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_bytes(b"{}")
    location = model / "sub" / "weights.safetensors"
    location.write_bytes(content)
    with casweights.open(tmp_path / "store", create=True) as store:
        with pytest.raises(InvalidInputError, match=re.escape(str(location))) as caught:
            store.commit(model)
        assert caught.value.code is ErrorCode.BAD_SAFETENSORS
        assert "opaque" in str(caught.value)
        assert len(str(caught.value)) < 1000
        assert store.branches() == {}
        assert store.stats().packs == 0

        store.commit(model, opaque=["sub/*.safetensors"])
        store.checkout("main", tmp_path / "out")
        assert store.verify().problems == ()
    assert (tmp_path / "out/sub/weights.safetensors").read_bytes() == content


def test_the_file_that_the_malformed_ones_vary_is_parsed(tmp_path: Path) -> None:
    """Thus the files above are refused for their faults, not for the way they are built."""
    (tmp_path / "t.safetensors").write_bytes(SOUND)
    with casweights.open(tmp_path / "store", create=True) as store:
        header = store.commit(tmp_path / "t.safetensors").files[0].header
    assert header is not None
    assert [info.name for info in header.tensors] == ["t"]


def oversized_header(path: Path) -> None:
    """Write a header of valid JSON that is as long as it declares, but too long."""
    path.write_bytes(file_with(b"{}" + b" " * (MAX_HEADER_SIZE - 1)))


def huge_names(path: Path) -> None:
    path.write_bytes(file_with({"n" * 1_000_000: tensor(dtype="?" * 1_000_000)}, bytes(4)))


@pytest.mark.parametrize("write", [oversized_header, huge_names])
def test_large_malformed_file_gives_a_short_message(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    location = tmp_path / "big.safetensors"
    write(location)
    with casweights.open("memory://", create=True) as store:
        with pytest.raises(InvalidInputError, match=re.escape(str(location))) as caught:
            store.commit(location)
        assert len(str(caught.value)) < 1000
        size = store.commit(location, opaque=["*"]).size
    assert size == location.stat().st_size
