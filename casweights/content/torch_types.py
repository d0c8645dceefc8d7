"""Torch's dtypes and tensors in the terms of safetensors: codes, shapes and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from casweights.errors import ErrorCode, UnsupportedError
from casweights.format.dtypes import DTYPES
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from casweights.format.safetensors import TensorInfo

TORCH_TYPES = {
    code: getattr(torch, name)
    for code, name in {
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
    }.items()
    if hasattr(torch, name)
}
SAFETENSORS_TYPES = {dtype: DTYPES[code] for code, dtype in TORCH_TYPES.items()}
_PATTERNS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PAIRS = "F4"  # torch counts two packed elements as one, safetensors as two


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same view of the same memory."""
    if tensor.numel() == 0:
        return (id(tensor),)
    where = tensor.data_ptr(), tensor.device, tensor.is_conj(), tensor.is_neg()
    return (*where, tensor.dtype, tensor.shape, tensor.stride())


def is_plain_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is its bytes in C order, and on the CPU: nothing to copy."""
    return tensor.device.type == "cpu" and is_dense(tensor)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is its bytes in C order, on whichever device."""
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is its value (not so for DTensor and other wrappers)."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def check_tensor(tensor: torch.Tensor, path: str) -> None:
    """Refuse what has no bytes of its own, or none that safetensors can express.

    Raises:
        UnsupportedError: It names the tensor by its path.
    """
    odd = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested
    if odd or tensor.is_meta:
        kinds = {"meta": tensor.is_meta, "quantized": tensor.is_quantized}
        kinds |= {"nested": tensor.is_nested, "sparse": True}
        kind = next(kind for kind, holds in kinds.items() if holds)
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED, f"the tensor {path!r} is {kind}: commit a dense tensor instead"
        )
    if not is_plain_tensor(tensor):
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"the tensor {path!r} is a {type(tensor).__name__}: commit its plain tensor instead",
        )
    if tensor.dtype not in SAFETENSORS_TYPES:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"the tensor {path!r} has dtype {tensor.dtype}, which safetensors cannot express",
        )
    if SAFETENSORS_TYPES[tensor.dtype].code == _PAIRS and tensor.dim() == 0:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"the tensor {path!r} is a pair of packed elements without a dimension, which "
            "safetensors cannot express: reshape it",
        )


def code_of(tensor: torch.Tensor) -> str:
    """The safetensors code of a tensor's dtype."""
    return SAFETENSORS_TYPES[tensor.dtype].code


def element_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape as safetensors counts it."""
    shape = tuple(tensor.shape)
    if SAFETENSORS_TYPES[tensor.dtype].code == _PAIRS:
        return (*shape[:-1], 2 * shape[-1])
    return shape


def patterns(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's elements as integers with the same bits, which torch can copy and compare all."""
    plain = tensor.resolve_conj().resolve_neg()
    return plain.view(_PATTERNS[plain.dtype.itemsize])


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in C order; of its own memory where that is possible."""
    dense = patterns(tensor.detach()).cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # reshape keeps the stride of a lone element
    return flat.view(torch.uint8).numpy().data


def allocate(info: TensorInfo) -> tuple[torch.Tensor, memoryview]:
    """A tensor with undefined content, and its bytes.

    Raises:
        UnsupportedError: Torch has no such dtype or shape, or there is not enough memory.
    """
    dtype, shape = TORCH_TYPES.get(info.dtype.code), info.shape
    is_odd = info.dtype.code == _PAIRS and shape[-1] % 2 != 0
    if dtype is None or is_odd:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"torch cannot hold the tensor {info.name!r}, {info.dtype.code} {list(shape)}: check "
            "the file out instead, or leave the tensor out",
        )
    if info.dtype.code == _PAIRS:
        shape = (*shape[:-1], shape[-1] // 2)
    try:
        memory = uninitialized(info.nbytes)
        if not memory:
            return torch.empty(shape, dtype=dtype), memory
        return torch.frombuffer(memory, dtype=dtype).reshape(shape), memory
    except (MemoryError, RuntimeError) as error:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED, f"torch cannot make the tensor {info.name!r}: {error}"
        ) from error
