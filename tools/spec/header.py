"""Read the headers of safetensors files, by docs/format.md alone. Part of `reader`."""

import itertools
import json
import re
import sys
from typing import Any, NamedTuple

from tools.spec.chunks import ints, is_text, need

MAX_HEADER = 100_000_000
MAX_SIZE = 2**64 - 1
FIELDS = ["dtype", "shape", "data_offsets"]
DTYPES_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "I64 U64 F64 C64",
}
BITS = {dtype: bits for bits, dtypes in DTYPES_BY_BITS.items() for dtype in dtypes.split()}


class Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object, in which keys may repeat."""


class Tensor(NamedTuple):
    """A tensor in a header; begin and end count from the end of the header."""

    dtype: str
    shape: list[int]
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


def parse_header(header: bytes, what: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, whose bytes follow each other without holes."""
    tensors, _ = parse_tensors(header, what)
    position = 0
    for tensor in tensors.values():
        need(tensor.begin == position, f"{what} leaves holes or overlaps")
        position = tensor.end
    return tensors


def parse_tensors(header: bytes, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, in the order of their bytes, and its metadata."""
    need(len(header) <= 8 + MAX_HEADER, f"{what} is too large")
    need(header[:8] == (len(header) - 8).to_bytes(8, "little"), f"{what} has a wrong length")
    entries = parse_json(header[8:], what)
    need(isinstance(entries, Pairs), f"{what} is not an object")
    metadata = [value for key, value in entries if key == "__metadata__"]
    need(len(metadata) <= 1, f"{what}: metadata twice")
    for value in metadata:
        is_map = isinstance(value, Pairs) and all(isinstance(text, str) for _, text in value)
        need(value is None or is_map, f"{what}: metadata")
    fields = {
        name: tensor_fields(entry, f"{what}: tensor {name!r}")
        for name, entry in entries
        if name != "__metadata__"
    }
    found = {
        name: Tensor(dtype, shape, *tensor_span(dtype, shape, offsets, f"{what}: tensor {name!r}"))
        for name, (dtype, shape, offsets) in fields.items()
    }
    tensors = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)))
    return tensors, dict(metadata[0] or []) if metadata else {}


def parse_json(text: bytes, what: str) -> Any:
    bare = re.sub(rb'"(?:[^"\\]++|\\.)*+"?+', b"", text, flags=re.DOTALL)
    brackets = bare.count(b"[") + bare.count(b"{")
    need(brackets <= 1024 + len(text) // 12, f"{what} has too many brackets")
    depths = itertools.accumulate((byte in b"[{") - (byte in b"]}") for byte in bare)
    need(max(depths, default=0) <= 127, f"{what} is nested too deeply")
    value = json.loads(
        text.decode(), object_pairs_hook=Pairs, parse_int=to_int, parse_float=to_float
    )
    check_values(value, what)
    return value


def to_int(digits: str) -> int | float:
    return to_float(digits) if digits == "-0" or len(digits) > 20 else int(digits)


def to_float(digits: str) -> float:
    need(abs(float(digits)) <= sys.float_info.max, "a number is out of range")
    return float(digits)


def check_values(value: Any, what: str) -> None:
    """Refuse values that Python accepts although they are not valid JSON."""
    if isinstance(value, list | tuple):  # `Pairs` are lists of tuples
        for item in value:
            check_values(item, what)
    is_bad_text = isinstance(value, str) and not is_text(value)
    is_constant = isinstance(value, float) and not abs(value) <= sys.float_info.max
    need(not is_bad_text and not is_constant, f"{what} is not JSON")


def tensor_fields(entry: Any, what: str) -> tuple[str, list[int], list[int]]:
    if isinstance(entry, Pairs):
        known = [(key, value) for key, value in entry if key in FIELDS]
        need(len(known) == len(dict(known)), f"{what} has a field twice")
        entry = [dict(known).get(key) for key in FIELDS]
    need(isinstance(entry, list) and len(entry) == len(FIELDS), f"{what} is malformed")
    dtype, shape, offsets = entry
    if isinstance(dtype, Pairs) and len(dtype) == 1 and dtype[0][1] is None:
        dtype = dtype[0][0]
    need(isinstance(dtype, str) and dtype in BITS, f"{what} has an unknown dtype")
    is_lists = type(shape) is list and type(offsets) is list and len(offsets) == 2
    need(is_lists, f"{what} is malformed")
    return dtype, ints(shape, 0, MAX_SIZE, what), ints(offsets, 0, MAX_SIZE, what)


def tensor_span(dtype: str, shape: list[int], offsets: list[int], what: str) -> tuple[int, int]:
    start, end = offsets
    elements = 1
    for n in shape:
        elements *= n
        need(elements <= MAX_SIZE, f"{what} is too large")
    bits = elements * BITS[dtype]
    need(bits <= MAX_SIZE and bits == (end - start) * 8, f"{what} has a wrong size")
    return start, end
