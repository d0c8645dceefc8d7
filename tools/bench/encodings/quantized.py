"""Measures differences of quantized models: two checkpoints of one fine-tune, in common formats."""

from __future__ import annotations

from time import process_time
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file

from casweights.config import DEFAULT_CHUNK_SIZE
from casweights.format.codecs import decode, encode
from casweights.format.differences import encode_difference
from casweights.format.dtypes import DTYPES
from tools.bench.encodings.states import zstd
from tools.bench.harness import Result, compared, measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tools.bench.encodings.data import Data
    from tools.bench.encodings.states import Array

    Parts = list[tuple[str, bytes]]  # bytes and their dtype

_ALIGNMENT = 32  # of tensors in a file of blocks
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def quantized(data: Data) -> list[Result]:
    """Return the bytes of a checkpoint from the one before it, in each format."""
    old, new = (load_file(path) for path in data.chain("tuned")[-2:])
    matrices = [n for n, tensor in old.items() if tensor.dim() == 2 and tensor.shape[1] % 128 == 0]
    pairs = [(_floats(old[name]), _floats(new[name])) for name in sorted(matrices)]
    results = []
    for what, target, of_xor, quantize in _FORMATS:
        before, after = (quantize([pair[n] for pair in pairs]) for n in (0, 1))
        results += _rows(what, target, of_xor, before, after)
    return results


def _rows(
    what: str, target: float | None, of_xor: float | None, before: Parts, after: Parts
) -> list[Result]:
    """Return the rows on one format: of all bytes, and of what XOR and zstd make of them."""
    raw = sum(len(part) for _, part in after)
    changed = ours = reference = 0
    seconds = [0.0, 0.0]  # of encoding and decoding, on one core
    for (code, old), (_, new) in zip(before, after, strict=True):
        xor = np.frombuffer(old, np.uint8) ^ np.frombuffer(new, np.uint8)
        changed += int(np.count_nonzero(xor))
        reference += len(zstd(xor.tobytes(), 3))
        for chunk in _chunks(old, new):
            ours += _smallest(code, *chunk, seconds)
    share = 100 * ours / raw
    note = f"{raw:,} bytes, {changed / raw:.1%} changed"
    return [
        measured(f"{what}, % of raw", share, "%", target=target, note=note),
        compared(f"{what}, of XOR", ours, reference, "bytes", target=of_xor, note="XOR, zstd-3"),
        *(
            measured(f"{what}, {way}", raw / time / 1e9, "GB/s", note="processor time, one core")
            for way, time in zip(("encode", "decode"), seconds, strict=True)
        ),
    ]


def _chunks(old: bytes, new: bytes) -> Iterable[tuple[memoryview, memoryview]]:
    for start in range(0, len(new), DEFAULT_CHUNK_SIZE):
        both = (memoryview(data)[start : start + DEFAULT_CHUNK_SIZE] for data in (old, new))
        before, after = both
        if before != after:
            yield before, after


def _smallest(code: str, old: memoryview, new: memoryview, seconds: list[float]) -> int:
    """Return the bytes of a chunk, and add the times that its difference takes."""
    start = process_time()
    difference = encode_difference(new, old, DTYPES[code])
    seconds[0] += process_time() - start
    if difference is not None:
        out = bytearray(old)
        start = process_time()
        decode(difference[0], difference[1], memoryview(out))
        seconds[1] += process_time() - start
        assert out == new
    found = difference, encode(new, DTYPES[code], "auto")
    return min(len(encoded[1]) for encoded in found if encoded is not None)


def _floats(tensor: torch.Tensor) -> Array:
    return tensor.float().numpy()


# --- Formats. Each function returns the tensors of a model, or its file.


def _int8(matrices: list[Array]) -> Parts:
    """Return integers of 8 bits, with a scale for each row."""
    parts: Parts = []
    for matrix in matrices:
        scales = (np.abs(matrix).max(axis=1) / 127).astype("<f4")
        parts += [("I8", _rounded(matrix, scales[:, None]).tobytes()), ("F32", scales.tobytes())]
    return parts


def _fp8(matrices: list[Array]) -> Parts:
    """Return E4M3, with a scale for each tensor."""
    parts: Parts = []
    for matrix in matrices:
        scale = np.abs(matrix).max() / np.float32(448)
        small = torch.from_numpy(matrix / scale).to(torch.float8_e4m3fn)
        parts.append(("F8_E4M3", small.view(torch.uint8).numpy().tobytes()))
    return parts


def _q8_0(matrices: list[Array]) -> Parts:
    """Return a file of blocks: an F16 scale and 32 integers of 8 bits."""

    def blocks(rows: Array) -> Array:
        scales = np.abs(rows).max(axis=1, keepdims=True) / 127
        numbers = _rounded(rows, scales).view(np.uint8)
        return np.hstack([scales.astype("<f2").view(np.uint8), numbers])

    return _file(matrices, blocks)


def _q4_0(matrices: list[Array]) -> Parts:
    """Return a file of blocks: an F16 scale and 32 integers of 4 bits."""

    def blocks(rows: Array) -> Array:
        largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
        scales = largest / -8
        exact = rows / np.where(scales, scales, 1)
        numbers = np.clip(np.floor(exact + np.float32(8.5)), 0, 15).astype(np.uint8)
        halves = numbers[:, :16] | numbers[:, 16:] << 4
        return np.hstack([scales.astype("<f2").view(np.uint8), halves])

    return _file(matrices, blocks)


def _mxfp4(matrices: list[Array]) -> Parts:
    """Return E2M1, two in a byte, and a power of two for each 32."""
    parts: Parts = []
    for matrix in matrices:
        rows = matrix.reshape(-1, 32)
        largest = np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.float32(2.0**-120))
        exponents = np.floor(np.log2(largest)) - 2
        halves = _e2m1(rows * np.exp2(-exponents))
        parts += [("U8", halves.tobytes()), ("U8", (exponents + 127).astype(np.uint8).tobytes())]
    return parts


def _nvfp4(matrices: list[Array]) -> Parts:
    """Return E2M1, two in a byte, and an E4M3 scale for each 16."""
    parts: Parts = []
    for matrix in matrices:
        rows = matrix.reshape(-1, 16)
        whole = np.abs(matrix).max() / np.float32(6 * 448)
        scales = np.abs(rows).max(axis=1, keepdims=True) / 6 / whole
        small = torch.from_numpy(scales).to(torch.float8_e4m3fn)
        exact = rows / np.maximum(small.float().numpy() * whole, np.float32(1e-30))
        codes = small.view(torch.uint8).numpy().tobytes()
        parts += [("U8", _e2m1(exact).tobytes()), ("F8_E4M3", codes)]
    return parts


def _int4(matrices: list[Array]) -> Parts:
    """Return integers of 4 bits, eight of a column in an I32, and a scale for each 128."""
    parts: Parts = []
    for matrix in matrices:
        groups = matrix.T.reshape(-1, 128, matrix.shape[0])
        scales = (np.abs(groups).max(axis=1, keepdims=True) / 7).astype("<f2")
        wide = np.maximum(scales.astype(np.float32), np.float32(1e-30))
        numbers = np.clip(np.rint(groups / wide) + 8, 0, 15).astype(np.uint32)
        eights = numbers.reshape(-1, 8, matrix.shape[0])
        packed = sum(eights[:, n] << np.uint32(4 * n) for n in range(8))
        parts += [("I32", np.asarray(packed, "<u4").tobytes()), ("F16", scales.tobytes())]
    return parts


def _rounded(values: Array, scales: Array) -> Array:
    return np.clip(np.rint(values / np.where(scales, scales, 1)), -127, 127).astype(np.int8)


def _e2m1(values: Array) -> Array:
    """Return values rounded to E2M1, two in a byte."""
    middles = (_E2M1[1:] + _E2M1[:-1]) / 2
    codes = np.searchsorted(middles, np.abs(values)).astype(np.uint8)
    codes |= np.signbit(values).astype(np.uint8) << 3
    pairs = codes.reshape(-1, 2)
    halves: Array = pairs[:, 0] | pairs[:, 1] << 4
    return halves


def _file(matrices: list[Array], blocks: Callable[[Array], Array]) -> Parts:
    tensors = [blocks(matrix.reshape(-1, 32)).tobytes() for matrix in matrices]
    return [("U8", b"".join(tensor + bytes(-len(tensor) % _ALIGNMENT) for tensor in tensors))]


_HALF = 0.5  # of XOR and zstd
_FORMATS: list[tuple[str, float | None, float | None, Callable[[list[Array]], Parts]]] = [
    ("int8 by rows", 4.6, None, _int8),
    ("Q8_0", 6.5, None, _q8_0),
    ("Q4_0", None, None, _q4_0),
    ("scaled fp8", 4.4, None, _fp8),
    ("MXFP4", None, _HALF, _mxfp4),
    ("NVFP4", None, _HALF, _nvfp4),
    ("int4 packs", None, _HALF, _int4),
]
