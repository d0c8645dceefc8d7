"""Tensors of a training, each step a function of its number."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from casweights.config import KiB, StoreConfig
from casweights.content.torch_types import patterns
from casweights.format.hashing import blake3_256
from casweights.testing.states import tensor_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casweights.format.manifest import Snapshot

CONFIG = StoreConfig(chunk_size=64 * KiB)
ENDLESS = 1_000_000

State = dict[str, torch.Tensor]


class Kind(NamedTuple):
    """A tensor of the model, of which each element moves once in so many steps."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    period: int


MODEL = {
    "layer.0": Kind(torch.bfloat16, (3, 40_000), 64),
    "layer.1": Kind(torch.float32, (70, 300), 64),
    "moments": Kind(torch.float32, (20_000,), 1),
    "norm": Kind(torch.bfloat16, (40_000,), 5),
    "frozen": Kind(torch.int8, (100_000,), ENDLESS),
}
_INTEGERS: dict[int, type[np.signedinteger[Any]]] = {1: np.int8, 2: np.int16, 4: np.int32}


@cache
def _first(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A tensor's bits at step 0, all patterns alike, and how soon each of them moves."""
    kind, generator = MODEL[name], np.random.default_rng(len(name) + MODEL[name].period)
    shape, integer = kind.shape, _INTEGERS[kind.dtype.itemsize]
    limits = np.iinfo(integer)
    bits = generator.integers(limits.min, limits.max, shape, integer, endpoint=True)
    return bits, generator.integers(0, kind.period, shape)


def state(step: int) -> State:
    """The tensors at a step."""
    made = {}
    for name, kind in MODEL.items():
        bits, phase = _first(name)
        moves = (step + phase) // kind.period
        made[name] = torch.from_numpy(bits + moves.astype(bits.dtype)).view(kind.dtype)
    return made


def blank() -> State:
    """Tensors of somebody who has nothing yet."""
    return {name: torch.zeros(kind.shape, dtype=kind.dtype) for name, kind in MODEL.items()}


def write_state(weights: State, step: int) -> None:
    """What an optimizer does, in place."""
    for name, tensor in state(step).items():
        patterns(weights[name]).copy_(patterns(tensor))


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    return blake3_256(b"".join(tensor_bits(weights[name]) for name in MODEL)).hex()


@cache
def digest_of(step: int) -> str:
    return digest(state(step))


def expect(last: int) -> None:
    """Compute what these steps must be once, and not in every child."""
    for step in range(last + 1):
        digest_of(step)


def step_of(version: Snapshot) -> int:
    step: int = version.metadata["step"]
    return step
