"""Models as callers pass them, modules or state dicts, and their tensors by name."""

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
    """The state dict of a module, or the one that was passed.

    Raises:
        InvalidInputError: It is neither.
    """
    if isinstance(source, torch.nn.Module):
        state: Mapping[str, Any] = source.state_dict()
        return state
    if isinstance(source, Mapping):
        return source
    raise InvalidInputError(
        ErrorCode.BAD_ARGUMENT, f"pass a module or a state dict, not a {type(source).__name__}"
    )


def plain_state(source: torch.nn.Module | Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with plain names, see `plain_names`.

    Raises:
        InvalidInputError: It is neither, or two names become one.
    """
    state = state_of(source)
    if not all(isinstance(name, str) for name in state):
        return state
    names = plain_names(state, source)
    if all(name == plain for name, plain in names.items()):
        return state
    return {names[name]: value for name, value in state.items()}


def named_tensors(state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """All tensors in a state dict, by the names that a version has for them.

    A tensor with several names is there under each of them.
    """
    found: dict[str, torch.Tensor] = {}
    for path, leaf in leaves(state):
        if isinstance(leaf, torch.Tensor):
            check_tensor(leaf, path)
            found[path] = leaf
    return found


def cast_policy(patterns: Mapping[str, torch.dtype]) -> Cast:
    """The dtypes to publish in, see `Publisher`."""
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
