"""Measures differences with factors: merged adapters, and what fine-tunes have of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from casweights.format.codecs import decode
from casweights.format.differences import encode_difference
from casweights.format.dtypes import DTYPES
from casweights.format.layout import Extent
from tools.bench.encodings.data import spread
from tools.bench.harness import Result, compared, pair

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.encodings.data import Data

_RANKS = (8, 16, 64)
_ROWS, _COLUMNS = 512, 4096  # a chunk of a large matrix
_WEIGHT, _CHANGE = 0.02, 0.001  # standard deviations
_TARGET = 1 / 2  # of the bytes of a difference without factors
_SLOWER = 2  # multiple of the time that decoding takes without factors
_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def adapters(data: Data, rounds: int) -> list[Result]:
    """Return bytes and times of differences with factors, relative to those without."""
    results = []
    for dtype in _CODES:
        for rank in _RANKS:
            old, new = _merged(rank, dtype)
            what = f"adapter of rank {rank}, {_CODES[dtype]}"
            ours, plain = _bytes_of(old, new, _COLUMNS, dtype)
            note = (
                f"a chunk of {_ROWS:,} rows and {_COLUMNS:,} columns, {ours / len(new):.1%} of it"
            )
            results.append(compared(what, ours, plain, "bytes", note=note, target=_TARGET))
    results += _times(*_merged(16, torch.bfloat16), rounds)
    names = ("tuned", "seed", "layers", "adapter")
    versions = [version for version in data.family if version.name.startswith(names)]
    sizes = spread(_bytes_of_files, [(data.base, version.path) for version in versions])
    for version, (ours, plain) in zip(versions, sizes, strict=True):
        results.append(
            compared(
                f"{version.name} from the base", ours, plain, "bytes", note="each tensor alone"
            )
        )
    return results


def _merged(rank: int, dtype: torch.dtype) -> tuple[bytes, bytes]:
    """Return weights, and the same with a product of this rank merged into them."""
    torch.manual_seed(rank)
    weight = (torch.randn(_ROWS, _COLUMNS) * _WEIGHT).to(dtype)
    product = torch.randn(_ROWS, rank) @ torch.randn(rank, _COLUMNS)
    merged = weight.float() + product * (_CHANGE / rank**0.5)
    return _content(weight), _content(merged.to(dtype))


def _content(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def _bytes_of(old: bytes, new: bytes, columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes of a difference that may have factors, and of one that has none."""
    if old == new:
        return 0, 0
    kind = DTYPES[_CODES[dtype]]
    choices = ([Extent(len(new), columns)], ())
    found = (encode_difference(new, old, kind, extents) for extents in choices)
    ours, plain = (len(new) if encoded is None else len(encoded[1]) for encoded in found)
    return ours, plain


def _bytes_of_files(files: tuple[Path, Path]) -> tuple[int, int]:
    """Return the same for all tensors of two files that differ."""
    before, ours, plain = load_file(files[0]), 0, 0
    for name, tensor in load_file(files[1]).items():
        columns = tensor.shape[-1] if tensor.dim() > 1 else 0
        sizes = _bytes_of(_content(before[name]), _content(tensor), columns, tensor.dtype)
        ours, plain = ours + sizes[0], plain + sizes[1]
    return ours, plain


def _times(old: bytes, new: bytes, rounds: int) -> list[Result]:
    dtype, out = DTYPES["BF16"], bytearray(old)
    found = [encode_difference(new, old, dtype, e) for e in ([Extent(len(new), _COLUMNS)], ())]
    ours, plain = (encoded for encoded in found if encoded is not None)
    note = "rank 16, bf16, a chunk of 4 MiB; times of the threads of the machine's BLAS included"

    def restore() -> None:
        out[:] = old

    return [
        pair(
            "encode an adapter",
            lambda: encode_difference(new, old, dtype, [Extent(len(new), _COLUMNS)]),
            lambda: encode_difference(new, old, dtype),
            target=None,
            note=note,
            rounds=rounds,
        ),
        pair(
            "decode an adapter",
            lambda: decode(*ours, memoryview(out)),
            lambda: decode(*plain, memoryview(out)),
            target=_SLOWER,
            note=note,
            prepare=restore,
            rounds=rounds,
        ),
    ]
