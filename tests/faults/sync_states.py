"""The tensors of a simulated training, as a function of the step's number."""

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
ENDLESS = 1_000_000  # a period, in steps, that no test reaches

State = dict[str, torch.Tensor]


class Kind(NamedTuple):
    """A tensor of the model. Each element changes once in `period` steps."""

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
    """Return a tensor's random bits at step 0, and the phase of each element in its period."""
    kind, generator = MODEL[name], np.random.default_rng(len(name) + MODEL[name].period)
    shape, integer = kind.shape, _INTEGERS[kind.dtype.itemsize]
    limits = np.iinfo(integer)
    bits = generator.integers(limits.min, limits.max, shape, integer, endpoint=True)
    return bits, generator.integers(0, kind.period, shape)


def state(step: int) -> State:
    """Return the tensors at a step."""
    made = {}
    for name, kind in MODEL.items():
        bits, phase = _first(name)
        moves = (step + phase) // kind.period
        made[name] = torch.from_numpy(bits + moves.astype(bits.dtype)).view(kind.dtype)
    return made


def blank() -> State:
    """Return zero tensors, as of a replica before its first sync."""
    return {name: torch.zeros(kind.shape, dtype=kind.dtype) for name, kind in MODEL.items()}


def write_state(weights: State, step: int) -> None:
    """Change tensors in place to those of a step, as an optimizer does."""
    for name, tensor in state(step).items():
        patterns(weights[name]).copy_(patterns(tensor))


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    return blake3_256(b"".join(tensor_bits(weights[name]) for name in MODEL)).hex()


@cache
def digest_of(step: int) -> str:
    return digest(state(step))


def expect(last: int) -> None:
    """Compute the digests of the steps up to `last` now, so that no child needs to."""
    for step in range(last + 1):
        digest_of(step)


def step_of(version: Snapshot) -> int:
    step: int = version.metadata["step"]
    return step
