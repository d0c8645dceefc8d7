"""Models as callers pass them: modules or state dicts, and their tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from casweights.content.plain_names import plain_names
from casweights.content.torch_types import check_tensor
from casweights.content.trees import leaves
from casweights.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from casweights.content.states import Cast


def state_of(source: torch.nn.Module | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict of a module, or `source` itself if it is a state dict.

    Raises:
        InvalidInputError: `source` is neither a module nor a state dict.
    """
    if isinstance(source, torch.nn.Module):
        state: Mapping[str, Any] = source.state_dict()
        return state
    if isinstance(source, Mapping):
        return source
    raise InvalidInputError(
        ErrorCode.BAD_ARGUMENT, f"pass a module or a state dict, got {type(source).__name__}"
    )


def plain_state(source: torch.nn.Module | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict of a model with plain names, see `plain_names`.

    Raises:
        InvalidInputError: `source` is neither a module nor a state dict, or two names become one.
    """
    state = state_of(source)
    # Keys that are not strings, like the numbers in an optimizer state, have no prefix to drop.
    if not all(isinstance(name, str) for name in state):
        return state
    names = plain_names(state, source)
    if all(name == plain for name, plain in names.items()):
        return state
    return {names[name]: value for name, value in state.items()}


def named_tensors(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Return all tensors in a state dict, by their names in a version.

    A tensor with several names is returned under each of them.
    """
    found: dict[str, torch.Tensor] = {}
    for path, leaf in leaves(state):
        if isinstance(leaf, torch.Tensor):
            check_tensor(leaf, path)
            found[path] = leaf
    return found


def cast_policy(patterns: Mapping[str, torch.dtype]) -> Cast:
    """Return a function from a tensor's name and dtype to the dtype to publish it in.

    Args:
        patterns: Floating-point dtypes by patterns of names; the first match counts. Tensors of
            other dtypes, or without a match, keep their dtype.

    Raises:
        InvalidInputError: A dtype in `patterns` is not a floating-point dtype.
    """
    for pattern, dtype in patterns.items():
        if not dtype.is_floating_point:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"cast of {pattern!r} must be a float dtype, got {dtype}"
            )

    def cast(name: str, dtype: torch.dtype) -> torch.dtype:
        if dtype.is_floating_point:
            for pattern, wanted in patterns.items():
                if fnmatchcase(name, pattern):
                    return wanted
        return dtype

    return cast
