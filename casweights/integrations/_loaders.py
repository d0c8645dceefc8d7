"""Whether a model's weight loaders write nothing but a checkpoint's own bits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)


def holds(model: Any, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether the model holds these very bits, each in one place, and can be patched.

    Loads them with a comparison in place of each write, so nothing is written.
    """
    comparison = _Comparison()
    try:
        with comparison:
            model.load_weights(iter(weights.items()))
    except Exception as error:
        _log.info("weights cannot be patched and will be loaded whole: %s", error)
        return False
    return comparison.same and comparison.covers(model) and not _derives(model)


def _derives(model: torch.nn.Module) -> bool:
    """Whether a layer keeps tensors beside its weights: made of them, they would go stale."""
    return any(
        isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 1
        for module in model.modules()
        for value in vars(module).values()
    )


class _Comparison(TorchFunctionMode):
    """Compares what weight loaders would write with what is there, and writes nothing.

    Attributes:
        same: Whether all of it is there, each in a place of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.same = True
        self._written: set[int] = set()
        self._storages: set[int] = set()

    def covers(self, model: torch.nn.Module) -> bool:
        """Whether something would have been written to every parameter."""
        storages = {_storage(weight) for weight in model.parameters() if weight.numel()}
        return bool(storages) and storages <= self._storages

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name == "copy_":
            self._compare(args[0], args[1])
            return args[0]
        if name in ("fill_", "zero_"):  # padding
            self._compare(args[0], torch.full_like(args[0], *args[1:] or (0,)))
            return args[0]
        if _writes(name) or kwargs.get("out") is not None:
            raise NotImplementedError(f"a loader writes by {name}")
        return func(*args, **kwargs)

    def _compare(self, there: torch.Tensor, new: torch.Tensor) -> None:
        if not there.numel():
            return
        fresh = there.data_ptr() not in self._written
        self._written.add(there.data_ptr())
        self._storages.add(_storage(there))
        self.same = self.same and fresh and _same_bits(there, new)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _writes(name: str) -> bool:
    if name.startswith("__"):
        return name in ("__set__", "__setitem__") or (
            name.startswith("__i") and name not in ("__index__", "__invert__", "__int__")
        )
    return name.endswith("_")


def _same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    theirs = theirs.to(ours.device, ours.dtype)
    return torch.equal(_bytes(ours), _bytes(theirs))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
