"""Headers of safetensors files: a strict parser, and a writer.

The format is defined by the README and the ``safetensors`` crate of huggingface/safetensors. The
parser accepts exactly the headers that this crate opens, except for a limit on brackets.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from casweights.errors import ErrorCode, InvalidInputError
from casweights.format import strictjson
from casweights.format.dtypes import DTYPES, DType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUFFIX = ".safetensors"
TREE_KEY = "casweights.tree"  # key in a file's metadata: the nesting of its state dict
LENGTH_SIZE = 8  # bytes in front of the header: its length
MAX_HEADER_SIZE = 100_000_000  # the reference implementation's limit
_ALIGNMENT = 8  # bytes: tensors begin at a multiple, as the reference implementation writes
_MAX_SIZE = 1 << 64  # the numbers of a header are unsigned and have 64 bits
_SHOWN = 200  # characters of a value in a message
_KEYS = ("dtype", "shape", "data_offsets")
_METADATA = "__metadata__"
_WHITE = b" \t\n\r"
_SURROGATE = re.compile("[\ud800-\udfff]")
_ORDER = {code: n for n, code in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a safetensors file.

    Attributes:
        name: Its key in the header.
        dtype: Element type.
        shape: Dimensions, in elements (for packed types too).
        start: Offset of its first byte in the data section.
        nbytes: Size in bytes.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header.

    Attributes:
        tensors: The tensors, in the order of their bytes in the file.
        metadata: The content of ``__metadata__``; empty if the header has no such entry.
    """

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]

    @property
    def data_size(self) -> int:
        """Bytes of the data section."""
        return sum(tensor.nbytes for tensor in self.tensors)


def bad(why: str) -> InvalidInputError:
    """Return the error for a file that is not valid safetensors."""
    return InvalidInputError(ErrorCode.BAD_SAFETENSORS, f"not a valid safetensors file: {why}")


def header_size(first_bytes: bytes, file_size: int) -> int:
    """Return the size of the whole header in bytes, its 8 length bytes included.

    Args:
        first_bytes: The first 8 bytes of the file.
        file_size: Size of the file in bytes.

    Raises:
        InvalidInputError: The length is missing, above the limit, or beyond the file's end.
    """
    if len(first_bytes) < LENGTH_SIZE:
        raise bad(f"it has {file_size} bytes, too few for a header")
    length = int.from_bytes(first_bytes, "little")
    if length > MAX_HEADER_SIZE:
        raise bad(f"its header claims {length} bytes, above the limit of {MAX_HEADER_SIZE}")
    if LENGTH_SIZE + length > file_size:
        raise bad(f"its header claims {length} bytes in a file of {file_size}: is it truncated?")
    return LENGTH_SIZE + length


def may_be(first_bytes: bytes, file_size: int) -> bool:
    """Return whether a file that begins with these bytes may be a safetensors file.

    Args:
        first_bytes: The first bytes of the file: more than 8, unless the file is shorter.
        file_size: Size of the file in bytes.
    """
    length = int.from_bytes(first_bytes[:LENGTH_SIZE], "little")
    text = first_bytes[LENGTH_SIZE:].lstrip(_WHITE)
    return 2 <= length <= min(MAX_HEADER_SIZE, file_size - LENGTH_SIZE) and text[:1] in (b"", b"{")


def parse_header(header: bytes, data_size: int) -> Header:
    """Parse a header, length bytes included.

    Args:
        header: The first `header_size` bytes of the file.
        data_size: Bytes that follow the header.

    Raises:
        InvalidInputError: The reference library refuses the header: malformed JSON, missing
            fields, unknown types, sizes that do not match shapes, holes, overlaps, missing or
            surplus data.
    """
    if len(header) != header_size(header[:LENGTH_SIZE], len(header)):
        raise bad("its header's length is wrong")
    table = _parse_json(header[LENGTH_SIZE:])
    for name, entry in _earlier(table):
        if name == _METADATA:
            raise bad("its header has __metadata__ twice")
        _parse_fields(name, entry)
    metadata = _parse_metadata(table.pop(_METADATA, None))
    tensors = [_parse_tensor(name, entry) for name, entry in table.items()]
    tensors.sort(key=lambda t: (t.start, t.nbytes))
    _check_cover(tensors, data_size)
    return Header(tuple(tensors), metadata)


def _parse_json(text: bytes) -> dict[str, Any]:
    try:
        table = strictjson.parse(text)
    except (ValueError, RecursionError) as error:
        raise bad(f"its header is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise bad("its header is not a JSON object")
    return table


def _earlier(table: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the entries that later ones of the same key replace; they must be well-formed, too."""
    return table.earlier if isinstance(table, strictjson.Repeating) else []


def _parse_metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for text in (*value.values(), *(text for _, text in _earlier(value)))
    ):
        raise bad("__metadata__ is not a map from strings to strings")
    return dict(value)


def is_text(value: object) -> bool:
    """Return whether a value is a string that UTF-8 can encode (JSON allows lone surrogates)."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATE.search(value))


def _shown(value: object) -> str:
    """Return the beginning of a value for a message, without formatting all of a large value."""
    if isinstance(value, list | str):
        value = value[:_SHOWN]
    return f"{value!r:.{_SHOWN}}"


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_SIZE


def _parse_tensor(name: str, entry: object) -> TensorInfo:
    dtype, shape, start, stop = _parse_fields(name, entry)
    nbytes = dtype.nbytes(shape)
    if nbytes is None or nbytes != stop - start:
        raise bad(
            f"tensor {_shown(name)} has bytes {start} to {stop}, which is not its shape's size"
        )
    return TensorInfo(name, dtype, shape, start, nbytes)


def _parse_fields(name: str, entry: object) -> tuple[DType, tuple[int, ...], int, int]:
    """Return dtype, shape, start and stop of an entry; stop - start need not match the shape."""
    if isinstance(entry, dict) and not any(key in _KEYS for key, _ in _earlier(entry)):
        fields = [entry[key] for key in _KEYS if key in entry]
    else:
        fields = entry if isinstance(entry, list) else []
    if len(fields) != len(_KEYS):
        raise bad(f"tensor {_shown(name)} does not have dtype, shape and data_offsets once each")
    code, shape, offsets = fields
    dtype = _parse_dtype(code)
    if dtype is None:
        raise bad(f"tensor {_shown(name)} has the unknown dtype {_shown(code)}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise bad(f"tensor {_shown(name)} has the impossible shape {_shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise bad(f"tensor {_shown(name)} has the impossible data_offsets {_shown(offsets)}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _parse_dtype(code: object) -> DType | None:
    if isinstance(code, dict) and list(code.values()) == [None] and not _earlier(code):
        [code] = code  # the long form of an enum's value, which the reference library accepts
    return DTYPES.get(code) if isinstance(code, str) else None


def _check_cover(tensors: list[TensorInfo], data_size: int) -> None:
    if tensors and tensors[0].start != 0:
        raise bad(f"tensor {_shown(tensors[0].name)} does not start at the first data byte")
    for left, right in pairwise(tensors):
        if left.start + left.nbytes != right.start:
            kind = "overlap" if left.start + left.nbytes > right.start else "leave a hole"
            raise bad(f"tensors {_shown(left.name)} and {_shown(right.name)} {kind}")
    end = tensors[-1].start + tensors[-1].nbytes if tensors else 0
    if end != data_size:
        raise bad(f"its tensors end at byte {end} of {data_size} data bytes: is it truncated?")


def build_header(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Build a header in the order and form of the reference library.

    The tensors are sorted by descending dtype, which is roughly descending size, then by name. The
    JSON is padded with spaces so that the data section begins at a multiple of 8 bytes.

    Args:
        tensors: Name, dtype and shape of each tensor.
        metadata: The content of ``__metadata__``; an empty one is left out.

    Raises:
        InvalidInputError: A tensor does not have a whole number of bytes, or the header exceeds
            the size limit.
    """
    table: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    start = 0
    for name, dtype, shape in sorted(tensors, key=lambda t: (-_ORDER[t[1].code], t[0])):
        nbytes = dtype.nbytes(shape)
        if nbytes is None:
            raise bad(f"tensor {_shown(name)} does not have a whole number of bytes")
        table[name] = {
            "dtype": dtype.code,
            "shape": list(shape),
            "data_offsets": [start, start + nbytes],
        }
        start += nbytes
    return _framed(_json(table))


def replace_metadata(header: bytes, old: Mapping[str, str], new: Mapping[str, str]) -> bytes:
    """Return the header that `build_header` returns for the same tensors and other metadata.

    Args:
        header: A header that `build_header` returned.
        old: The metadata of `header`; not empty.
        new: The metadata of the result; not empty.
    """
    replaced = len(_json({_METADATA: dict(old)})) - 1  # all but the last brace
    kept = header[LENGTH_SIZE + replaced :].rstrip(b" ")
    return _framed(_json({_METADATA: dict(new)})[:-1] + kept)


def _json(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()


def _framed(text: bytes) -> bytes:
    """Return the header with this JSON: its length, the text, and padding."""
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_SIZE:
        raise bad(f"its header would take {len(text)} bytes, above the limit")
    return len(text).to_bytes(LENGTH_SIZE, "little") + text
