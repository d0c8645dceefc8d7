"""A test whether a model's weight loaders copy the bits of a checkpoint without changing them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)


def holds(model: Any, weights: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a model can be patched with versions of these weights.

    It can if it holds exactly these bits, each in one place, and its loader writes to all of its
    parameters, and no layer holds tensors that may be derived from them. The loader runs with a
    comparison in place of each write, so it writes nothing.

    Args:
        model: The model; its ``load_weights`` is called.
        weights: The weights by name, in checkpoint layout.
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
    """Whether a layer has plain tensors as attributes, which may be derived from its weights.

    A patch of the weights would leave them stale.
    """
    return any(
        isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 1
        for module in model.modules()
        for value in vars(module).values()
    )


class _Comparison(TorchFunctionMode):
    """Replaces the writes of weight loaders by comparisons with the present content.

    Attributes:
        same: Whether the content was equal in each comparison, and no memory was compared twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.same = True
        self._written: set[int] = set()
        self._storages: set[int] = set()

    def covers(self, model: torch.nn.Module) -> bool:
        """Whether the loaders would have written to every parameter of a model."""
        # Compared by storage: loaders write to views of fused parameters.
        storages = {_storage(weight) for weight in model.parameters() if weight.numel()}
        return bool(storages) and storages <= self._storages

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compare instead of writing; raise an error for writes of any other kind."""
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

    def _compare(self, present: torch.Tensor, new: torch.Tensor) -> None:
        """Record that a loader would write to `present`, and whether that changes its bits."""
        if not present.numel():
            return
        # A second write to the same memory would make the result depend on the order of writes.
        fresh = present.data_ptr() not in self._written
        self._written.add(present.data_ptr())
        self._storages.add(_storage(present))
        self.same = self.same and fresh and _same_bits(present, new)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _writes(name: str) -> bool:
    """Whether a function of torch writes to its first argument, by its name."""
    if name.startswith("__"):
        return name in ("__set__", "__setitem__") or (
            name.startswith("__i") and name not in ("__index__", "__invert__", "__int__")
        )
    return name.endswith("_")


def _same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether a write of `theirs` to `ours`, which casts, would leave all bits as they are."""
    if ours.shape != theirs.shape:
        return False
    theirs = theirs.to(ours.device, ours.dtype)
    return torch.equal(_bytes(ours), _bytes(theirs))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
