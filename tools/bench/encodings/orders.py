"""Measures versions for which something is there that is a poor base of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

import casweights
from casweights.stores.memory import MemoryStore
from tools.bench.harness import Result, compared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.bench.encodings.data import Data

    Tensors = dict[str, torch.Tensor]

_TARGET = 1.02
_LARGEST = 448.0  # of float8_e4m3fn


def orders(data: Data) -> list[Result]:
    """Return the bytes of versions, relative to those in the best order."""
    base, early, late = (load_file(path) for path in data.masters_of_steps)
    fine_tunes = [load_file(path) for path in data.chain("tuned")[:3]]
    scaled = [_fp8(tensors, is_scaled=True) for tensors in fine_tunes]
    unscaled = _fp8(load_file(data.base), is_scaled=False)
    return [
        compared(
            "fp32 step 60 after step 20",
            added([base, early], [late]),
            added([base], [late]),
            "bytes",
            target=_TARGET,
            note="right after the base",
        ),
        compared(
            "three scaled fp8 versions, an unscaled relative already there",
            added([unscaled], scaled, is_related=False),
            added([], scaled, is_related=False),
            "bytes",
            target=_TARGET,
            note="no relative there",
        ),
    ]


def added(old: Sequence[Tensors], new: Sequence[Tensors], *, is_related: bool = True) -> int:
    """Return the bytes that further versions of a branch add to a store.

    Args:
        old: The versions that are there, from one to the next.
        new: The further ones.
        is_related: Whether the first of them is declared to come from the last of these.
    """
    store = MemoryStore()
    with casweights.open(store, create=True) as repo:
        for tensors in old:
            repo.commit(tensors, branch="main")
        before = sum(info.size for info in store.list())
        for tensors in new:
            repo.commit(tensors, branch="main" if is_related else "new")
    return sum(info.size for info in store.list()) - before


def _fp8(tensors: Tensors, *, is_scaled: bool) -> Tensors:
    """Return a model in fp8; if it is scaled, with a factor for each tensor, and its inverse."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        values = tensor.float()
        factor = _LARGEST / values.abs().max().clamp(min=1e-12) if is_scaled else torch.ones(())
        made[name] = (values * factor).to(torch.float8_e4m3fn)
        if is_scaled:
            made[f"{name}_scale_inv"] = (1 / factor).reshape(1)
    return made
