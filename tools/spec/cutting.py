"""Files as a writer cuts them into chunks, written from docs/format.md alone."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from tools.spec import encoders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""The bits of each dtype ("Manifests and snapshots")."""

_FLOATS = {
    **dict.fromkeys(("F8_E5M2", "F8_E5M2FNUZ"), 4),
    **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ"), 5),
    "F16": 6,
    "BF16": 7,
    **dict.fromkeys(("F32", "C64"), 8),
    "F64": 9,
}


class Tensor(NamedTuple):
    """A tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class SafetensorsFile(NamedTuple):
    """A file whose header is known: the tensors are in the order of their bytes."""

    header: bytes
    tensors: tuple[Tensor, ...]

    @property
    def content(self) -> bytes:
        return self.header + b"".join(tensor.data for tensor in self.tensors)


class Chunk(NamedTuple):
    """A chunk of a file, and what its bytes are."""

    raw: bytes
    kind: encoders.Kind
    spans: tuple[int, ...]
    """The bytes of each tensor in it, in order."""


def safetensors_file(
    tensors: Sequence[Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    listed: Sequence[int] | None = None,
    arrays: bool = False,
) -> SafetensorsFile:
    """A file of these tensors, whose bytes lie in the order given ("Manifests and snapshots").

    Args:
        tensors: Those of equal beginning, that is empty ones, come before others.
        metadata: The header's `__metadata__`.
        listed: The order in which the JSON names the tensors; as given if None.
        arrays: Write tensors as arrays and dtypes as objects, as the page also allows.
    """
    fields: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    ends = [0]
    for tensor in tensors:
        ends.append(ends[-1] + len(tensor.data))
    for n in range(len(tensors)) if listed is None else listed:
        tensor, offsets = tensors[n], [ends[n], ends[n + 1]]
        if arrays:
            fields[tensor.name] = [{tensor.dtype: None}, tensor.shape, offsets]
        else:
            named = {"shape": tensor.shape, "data_offsets": offsets, "dtype": tensor.dtype}
            fields[tensor.name] = {**named, "note": [1.5]}
    text = json.dumps(fields, ensure_ascii=False).encode()
    return SafetensorsFile(len(text).to_bytes(8, "little") + text, tuple(tensors))


def chunks_of(file: bytes | SafetensorsFile, chunk_size: int) -> Iterator[Chunk]:
    """The chunks of a file, in order, without its header ("Chunks")."""
    if isinstance(file, bytes):
        for raw in grid(file, chunk_size):
            yield Chunk(raw, encoders.KINDS[0], (len(raw),))
        return
    for bundle in _bundles(file.tensors, chunk_size):
        spans = tuple(len(tensor.data) for tensor in bundle)
        kind = kind_of(bundle[0].dtype)
        for raw in grid(b"".join(tensor.data for tensor in bundle), chunk_size):
            yield Chunk(raw, kind, spans if len(spans) > 1 else (len(raw),))


def grid(content: bytes, size: int) -> list[bytes]:
    """Bytes, cut from the first on into pieces of one size; the last may be shorter ("Chunks")."""
    return [content[at : at + size] for at in range(0, len(content), size)]


def kind_of(dtype: str) -> encoders.Kind:
    """The elements of a dtype ("Differences")."""
    whole = {8: 0, 16: 1, 32: 2, 64: 3}
    return encoders.KINDS[_FLOATS.get(dtype, whole.get(BITS[dtype], 0))]


def _bundles(tensors: Iterable[Tensor], chunk_size: int) -> Iterator[list[Tensor]]:
    """Tensors that are cut together ("Chunks")."""
    bundle: list[Tensor] = []
    for tensor in tensors:
        if not tensor.data:
            continue
        if bundle and not _joins(tensor, bundle, chunk_size):
            yield bundle
            bundle = []
        bundle.append(tensor)
    if bundle:
        yield bundle


def _joins(tensor: Tensor, bundle: list[Tensor], chunk_size: int) -> bool:
    before = bundle[-1]
    if max(len(before.data), len(tensor.data)) * 2 >= chunk_size or before.dtype != tensor.dtype:
        return False
    held = sum(len(member.data) for member in bundle)
    if held + len(tensor.data) > chunk_size:
        return False
    block, mark = _block(tensor.name)
    if _block(before.name)[0] == block:
        return True
    return held * 8 < chunk_size and xxhash.xxh3_64_intdigest(mark.encode()) % 64 != 0


def _block(name: str) -> tuple[str, str]:
    """The block of a tensor, and its mark."""
    parts = name.split(".")
    for n in range(len(parts) - 1, -1, -1):
        if re.fullmatch("[0-9]+", parts[n]):
            return ".".join(parts[: n + 1]), parts[n]
    return name, name
