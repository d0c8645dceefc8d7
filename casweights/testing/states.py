"""Bit-by-bit comparison of tensors and state dicts."""

# ruff: noqa: S101  a failed comparison reports the difference as an AssertionError

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

_PATTERNS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tensor_bits(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's elements in C order.

    Unlike values, bytes distinguish NaNs from each other and -0.0 from 0.0.
    """
    plain = tensor.detach().resolve_conj().resolve_neg()
    patterns = plain.view(_PATTERNS[plain.dtype.itemsize])  # numpy lacks bfloat16 and float8
    return patterns.cpu().numpy().tobytes()


def assert_same_tensor(actual: Any, expected: torch.Tensor, where: str = "tensor") -> None:
    """Assert that two tensors have the same dtype, shape and bits.

    Args:
        actual: The value to check.
        expected: The tensor that it must equal.
        where: Name of the tensor in the error.

    Raises:
        AssertionError: The tensors differ, or `actual` is not a tensor.
    """
    assert isinstance(actual, torch.Tensor), f"{where} is {type(actual)}"
    assert actual.dtype == expected.dtype, f"{where} is {actual.dtype}, not {expected.dtype}"
    assert actual.shape == expected.shape, f"{where} is {actual.shape}, not {expected.shape}"
    assert tensor_bits(actual) == tensor_bits(expected), f"{where} differs in its bits"


def assert_same_state(actual: Any, expected: Any) -> None:
    """Assert that two state dicts are equal, tensors bit by bit.

    Tensors that share memory in one state must share it in the other. The order of keys does not
    matter.

    Raises:
        AssertionError: The states differ; the message names the first difference.
    """
    actual_leaves: list[torch.Tensor] = []
    expected_leaves: list[torch.Tensor] = []
    _compare(actual, expected, "", actual_leaves, expected_leaves)
    assert _ties(actual_leaves) == _ties(expected_leaves), "different tensors are tied"


def _compare(
    actual: Any,
    expected: Any,
    where: str,
    actual_leaves: list[torch.Tensor],
    expected_leaves: list[torch.Tensor],
) -> None:
    if isinstance(expected, torch.Tensor):
        assert_same_tensor(actual, expected, where)
        actual_leaves.append(actual)
        expected_leaves.append(expected)
    elif isinstance(expected, dict | list | tuple):
        # `state_dict()` returns an OrderedDict with attributes; a loaded state is a plain dict.
        kind = dict if isinstance(expected, dict) else type(expected)
        assert type(actual) is kind, f"{where} is a {type(actual)}"
        assert len(actual) == len(expected), f"{where} has {len(actual)} items"
        if isinstance(expected, dict):
            assert _typed_keys(actual) == _typed_keys(expected), f"{where} has different keys"
        keys = expected if isinstance(expected, dict) else range(len(expected))
        for key in keys:
            _compare(
                actual[key], expected[key], f"{where}[{key!r}]", actual_leaves, expected_leaves
            )
    elif isinstance(expected, np.ndarray | np.generic | io.BytesIO):
        assert type(actual) is type(expected), f"{where} is a {type(actual)}"
        assert _content(actual) == _content(expected), f"{where} has different content"
    else:
        assert type(actual) is type(expected), f"{where} is a {type(actual)}"
        # By `repr`, because NaN does not equal itself.
        assert repr(actual) == repr(expected), f"{where} is {actual!r}, not {expected!r}"


def _content(value: Any) -> Any:
    """Return the content of a numpy value or a stream, for comparison bit by bit."""
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    return value.dtype, value.shape, value.tobytes()


def _typed_keys(node: Any) -> set[tuple[type, Any]]:
    # With types, because 1, 1.0 and True are the same key of a dict.
    return {(type(key), key) for key in node}


def _ties(leaves: list[torch.Tensor]) -> list[int]:
    """For each tensor, the number of the first one that is the same view of the same memory."""
    first: dict[Any, int] = {}
    return [first.setdefault(_view(leaf), n) for n, leaf in enumerate(leaves)]


def _view(tensor: torch.Tensor) -> tuple[Any, ...]:
    if tensor.numel() == 0:  # empty tensors share no memory, even at the same address
        return (id(tensor),)
    lazy = (tensor.is_conj(), tensor.is_neg())
    return (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), *lazy)
