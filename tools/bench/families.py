"""Families of models for `recall`: what is made of a base, in the order of the commits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file

from tools.models import variants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    State = dict[str, torch.Tensor]

_LAYERS, _WIDTH = 2, 256
_SHAPES = {"query": (1, 1), "key": (1, 1), "value": (1, 1), "up": (4, 1), "down": (1, 4)}
_RANK = 8


class Family(NamedTuple):
    """Versions that are made of each other.

    Attributes:
        name: Its name.
        versions: Returns the name and the weights of each version.
    """

    name: str
    versions: Callable[[], Iterator[tuple[str, State]]]


def random_family(number: int) -> Family:
    """Return variants of random weights, which move by random distances."""
    return Family(f"random-{number}", lambda: _random_versions(number))


def _random_versions(number: int) -> Iterator[tuple[str, State]]:
    generator = torch.Generator().manual_seed(number)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    def trained(state: State, rate: float) -> State:
        return {name: t + rate * noise(t) if t.dim() > 1 else t + rate for name, t in state.items()}

    base = {
        f"layers.{n}.{name}.weight": 0.02
        * torch.randn(high * _WIDTH, wide * _WIDTH, generator=generator)
        for n in range(_LAYERS)
        for name, (high, wide) in _SHAPES.items()
    } | {f"layers.{n}.norm.weight": torch.ones(_WIDTH) for n in range(_LAYERS)}
    full, further = trained(base, 5e-5), trained(base, 2e-4)
    light = {
        name: torch.where(torch.rand(t.shape, generator=generator) < 0.05, t * 1.01, t)
        for name, t in full.items()
    }
    adapted = dict(base)
    for name, tensor in base.items():
        if "query" in name or "value" in name:
            left = torch.randn(tensor.shape[0], _RANK, generator=generator)
            right = torch.randn(_RANK, tensor.shape[1], generator=generator)
            adapted[name] = tensor + 1e-5 * left @ right
    merged = {name: (full[name] + adapted[name]) / 2 for name in base}
    made = {
        "base": base,
        "full": full,
        "longer": further,
        "light": light,
        "adapted": adapted,
        "merged": merged,
        "renamed": renamed(trained(further, 5e-5)),
    }
    for name, state in made.items():
        yield name, cast(state, torch.bfloat16)
    yield "half", cast(base, torch.float16)
    yield "half-full", cast(full, torch.float16)
    yield "fused", fused(cast(trained(light, 2e-5), torch.bfloat16))


def real_family(work: Path, dtype: str) -> Family:
    """Return variants of a real model in one dtype, which are trained in seconds.

    Args:
        work: A directory for them.
        dtype: Name of the dtype in torch.
    """
    return Family(f"real-{dtype}", lambda: _real_versions(work, getattr(torch, dtype)))


def _real_versions(work: Path, dtype: torch.dtype) -> Iterator[tuple[str, State]]:
    base = variants.base_directory()
    tuned, further, layers = (work / name for name in ("tuned", "further", "layers"))
    if not tuned.exists():
        variants.fine_tune(base, tuned)
        variants.fine_tune(tuned, further)
        variants.fine_tune(base, layers, frozen_embeddings=True)
        variants.train_adapter(base, work / "adapter", rank=_RANK)
    states = {
        path.name: _weights(path / "model.safetensors") for path in (base, tuned, further, layers)
    }
    states["base"] = states.pop(base.name)
    states["adapted"] = _adapted(states["base"], load_file(work / "adapter" / _ADAPTER))
    one, two = states["tuned"], states["adapted"]
    states["merged"] = {name: (one[name] + two[name]) / 2 for name in one}
    states["renamed"] = renamed({n: (t + two[n]) / 2 for n, t in states["further"].items()})
    for name in ("base", "tuned", "further", "layers", "adapted", "merged", "renamed"):
        yield name, cast(states[name], dtype)
    if dtype == torch.bfloat16:
        yield "half", cast(states["base"], torch.float16)
        yield "half-tuned", cast(one, torch.float16)
    yield "fused", fused(cast(states["further"], dtype))


_ADAPTER = "adapter_model.safetensors"


def _weights(path: Path) -> State:
    """Return the layers of a model; its embedding is half of it, and trained the same way."""
    state = load_file(path)
    return {n: t for n, t in state.items() if t.is_floating_point() and "word_emb" not in n}


def _adapted(base: State, adapter: State) -> State:
    """Return the base with an adapter merged into it."""
    merged = dict(base)
    for name, left in adapter.items():
        if ".lora_B." in name:
            right = adapter[name.replace(".lora_B.", ".lora_A.")]
            target = name.removeprefix("base_model.model.").replace(".lora_B.", ".")
            merged[target] = base[target] + 2.0 * left @ right
    return merged


def cast(state: State, dtype: torch.dtype) -> State:
    """Return the state in another dtype."""
    return {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}


def renamed(state: State) -> State:
    """Return the tensors under names that say nothing, in another order."""
    return {f"blocks/{n}": tensor for n, tensor in enumerate(reversed(state.values()))}


def fused(state: State) -> State:
    """Return the state with queries, keys and values in one tensor each."""
    made = {}
    for name, tensor in state.items():
        if "query" in name:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            made[name.replace("query", "qkv")] = torch.cat(parts)
        elif "key" not in name and "value" not in name:
            made[name] = tensor
    return made
