"""Describe state dicts that the independent reader rebuilds, to compare with the library's."""

from __future__ import annotations

import hashlib
import io
from typing import Any

# The names of headers' dtypes in torch and numpy.
_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2",
}


def describe_read(value: Any) -> Any:
    """Describe the reader's state dict as ``tools.spec.golden.describe`` does the library's."""
    if hasattr(value, "data") and hasattr(value, "kind"):
        return _describe_tensor(value)
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, io.BytesIO):
        return {"stream": value.getvalue().hex()}
    if isinstance(value, dict):
        return {"dict": [[key, describe_read(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [describe_read(item) for item in value]}
    return {"value": repr(value)}


def _describe_tensor(value: Any) -> list[Any]:
    shape, digest = list(value.shape), hashlib.sha256(value.data).hexdigest()
    if value.kind != "tensor":
        return [value.kind, _TORCH[value.dtype], shape, digest]
    if value.dtype == "F4":  # torch counts pairs of elements
        shape[-1] //= 2
    return [f"torch.{_TORCH[value.dtype]}", shape, digest]


def names_of_tensors(value: Any) -> list[str]:
    """Return the name in the file of each tensor in a state dict, in order."""
    if isinstance(value, dict):
        return [name for item in value.values() for name in names_of_tensors(item)]
    if isinstance(value, list | tuple) and not hasattr(value, "kind"):
        return [name for item in value for name in names_of_tensors(item)]
    return [value.name] if getattr(value, "kind", "") == "tensor" else []
