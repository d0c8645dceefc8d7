"""States of models: names of tensors, and their bit patterns as flat arrays of uint16 or uint32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import zstandard

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Indices = NDArray[np.int64]
    State = dict[str, Array]

DTYPES = {"BF16": np.uint16, "F32": np.uint32}


def read_state(path: Path) -> State:
    """Return the tensors of a safetensors file of bf16 or fp32, as bit patterns."""
    tensors: Any = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    return {n: np.frombuffer(t["data"], DTYPES[t["dtype"]]) for n, t in sorted(tensors)}


def flat(state: State) -> Array:
    """Return all tensors as one array, ordered by name."""
    return np.concatenate([state[name] for name in sorted(state)])


def unflat(base: State, flat: Array) -> State:
    """Return the state from which `flat` made an array; `base` gives names and lengths."""
    names = sorted(base)
    ends = np.cumsum([len(base[name]) for name in names])
    return dict(zip(names, np.split(flat, ends[:-1]), strict=True))


def zstd(data: bytes, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(data)


def unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data)
