"""Conversion of torch's dtypes and tensors to the codes, shapes and bytes of safetensors."""

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
_PATTERNS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by itemsize
_PAIRS = "F4"  # torch counts two packed elements as one, safetensors as two


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return a key that two tensors share only if they are the same view of the same memory."""
    if tensor.numel() == 0:
        return (id(tensor),)
    where = tensor.data_ptr(), tensor.device, tensor.is_conj(), tensor.is_neg()
    return (*where, tensor.dtype, tensor.shape, tensor.stride())


def is_plain_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's bytes in C order are in CPU memory, so that no copy is needed."""
    return tensor.device.type == "cpu" and is_dense(tensor)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory holds its bytes in C order, on any device."""
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory holds its value, unlike that of a DTensor or another wrapper."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def check_tensor(tensor: torch.Tensor, path: str) -> None:
    """Check that safetensors can store a tensor.

    Args:
        tensor: The tensor.
        path: Its path in the state dict, for the error.

    Raises:
        UnsupportedError: It is not a dense, plain tensor of a dtype that safetensors has.
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
            f"the tensor {path!r} has dtype {tensor.dtype}, which safetensors cannot express: "
            "convert it to another dtype",
        )
    if SAFETENSORS_TYPES[tensor.dtype].code == _PAIRS and tensor.dim() == 0:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"the tensor {path!r} is a pair of packed elements without a dimension, which "
            "safetensors cannot express: give it a dimension",
        )


def code_of(tensor: torch.Tensor) -> str:
    """Return the safetensors code of a tensor's dtype, such as ``"BF16"``."""
    return SAFETENSORS_TYPES[tensor.dtype].code


def element_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's shape in safetensors' elements, two for each pair of packed ones."""
    shape = tuple(tensor.shape)
    if SAFETENSORS_TYPES[tensor.dtype].code == _PAIRS:
        return (*shape[:-1], 2 * shape[-1])
    return shape


def patterns(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's elements as integers with the same bits.

    Torch cannot copy and compare elements of some dtypes, and floats that are NaN are never equal.
    """
    plain = tensor.resolve_conj().resolve_neg()
    return plain.view(_PATTERNS[plain.dtype.itemsize])


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in C order: its own memory if possible, otherwise a copy."""
    dense = patterns(tensor.detach()).cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # reshape keeps the stride of a lone element
    return flat.view(torch.uint8).numpy().data


def allocate(info: TensorInfo) -> tuple[torch.Tensor, memoryview]:
    """Allocate a CPU tensor with undefined content.

    Args:
        info: The name, dtype and shape of the tensor.

    Returns:
        The tensor, and a view of its memory.

    Raises:
        UnsupportedError: Torch lacks the dtype or cannot have the shape, or memory is too small.
    """
    dtype, shape = TORCH_TYPES.get(info.dtype.code), info.shape
    is_odd = info.dtype.code == _PAIRS and shape[-1] % 2 != 0
    if dtype is None or is_odd:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"torch cannot hold the tensor {info.name!r}, {info.dtype.code} {list(shape)}: check "
            "out the file instead, or leave out the tensor",
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
            ErrorCode.UNSUPPORTED, f"torch cannot create the tensor {info.name!r}: {error}"
        ) from error
