"""State dicts as the independent reader rebuilds them, to compare with those of the library."""

from __future__ import annotations

import hashlib
import io
from typing import Any

# What torch and numpy call the dtypes of headers.
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
    """The same as ``tools.spec.golden.describe``, for what the reader makes of a state dict."""
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
    if value.dtype == "F4":  # torch counts pairs
        shape[-1] //= 2
    return [f"torch.{_TORCH[value.dtype]}", shape, digest]


def names_of_tensors(value: Any) -> list[str]:
    """The name of the tensor of the file for each tensor in a state dict, in order."""
    if isinstance(value, dict):
        return [name for item in value.values() for name in names_of_tensors(item)]
    if isinstance(value, list | tuple) and not hasattr(value, "kind"):
        return [name for item in value for name in names_of_tensors(item)]
    return [value.name] if getattr(value, "kind", "") == "tensor" else []
