"""Small models for the benchmarks of variants: unrelated ones, and what is made of them."""

from __future__ import annotations

import random

import torch

State = dict[str, torch.Tensor]

_SHAPES = {"attn.q": (256, 256), "attn.k": (256, 256), "mlp.up": (512, 256)}
_LAYERS = 4
_SHARE = 0.05  # of the elements that a light fine-tune changes


def base(number: int) -> State:
    """Return one of many unrelated models."""
    generator = torch.Generator().manual_seed(number)
    return {
        f"layers.{n}.{name}.weight": torch.randn(shape, generator=generator).bfloat16()
        for n in range(_LAYERS)
        for name, shape in _SHAPES.items()
    }


def tuned(state: State, seed: int) -> State:
    """Return a light fine-tune."""
    generator = torch.Generator().manual_seed(1_000_000 + seed)
    changed = {}
    for name, tensor in state.items():
        changed[name] = tensor.clone()
        moved = torch.rand(tensor.shape, generator=generator) < _SHARE
        changed[name].view(torch.int16)[moved] += 1
    return changed


def shuffled(state: State) -> State:
    """Return the tensors under other names, in another order."""
    tensors = list(state.values())
    random.Random(0).shuffle(tensors)
    return {f"blocks/{n}": tensor for n, tensor in enumerate(tensors)}


def stitched(number: int, count: int) -> State:
    """Return a model whose tensors come from three others in turn."""
    sources = [base((number + k) % count) for k in range(3)]
    return {name: sources[n % 3][name] for n, name in enumerate(sources[0])}
