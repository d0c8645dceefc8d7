"""A model of any size that is made in seconds, and steps of its training."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from tools.bench.encodings.data import to_bf16, write_state
from tools.bench.encodings.entropy import CLASSES, exponent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.bench.encodings.states import Array, State

_HIDDEN, _INNER, _WORDS = 2048, 5632, 16384
_LAYER = {
    **{f"attn.{name}": _HIDDEN * _HIDDEN for name in "qkvo"},
    **{f"mlp.{name}": _HIDDEN * _INNER for name in ("up", "gate", "down")},
    "norm": _HIDDEN,
}
_BLOCK = 1 << 20  # elements; their random numbers stay in the cache


class Synthetic:
    """A synthetic transformer in bf16, with normal weights whose scale differs between tensors.

    Args:
        size: Approximate number of bytes.

    Attributes:
        flat: All elements.
        state: The tensors, which are views of `flat`.
    """

    def __init__(self, size: int) -> None:
        self._rng = np.random.Generator(np.random.SFC64(0))
        layers = max(1, (size // 2 - _WORDS * _HIDDEN) // sum(_LAYER.values()))
        lengths = {"embeddings": _WORDS * _HIDDEN}
        for n in range(layers):
            lengths |= {f"layers.{n:02}.{name}": length for name, length in _LAYER.items()}
        lengths = dict(sorted(lengths.items()))
        self.flat = np.empty(sum(lengths.values()), np.uint16)
        ends = np.cumsum(list(lengths.values()))
        self.state: State = dict(zip(lengths, np.split(self.flat, ends[:-1]), strict=True))

    def make(self) -> None:
        """Draw the weights."""
        for tensor in self.state.values():
            scale = np.float32(0.02 * 2 ** self._rng.uniform(-1, 1))
            for start in range(0, len(tensor), _BLOCK):
                part = tensor[start : start + _BLOCK]
                normal = self._rng.standard_normal(len(part), np.float32) * scale
                part[:] = to_bf16(normal.view(np.uint32))

    def write(self, path: Path) -> None:
        """Write a safetensors file."""
        write_state(self.state, path)

    def read(self, path: Path) -> None:
        """Read a file that `write` wrote."""
        with path.open("rb") as file:
            file.seek(-self.flat.nbytes, os.SEEK_END)
            file.readinto(self.flat.view(np.uint8).data)

    def step(self, share: float) -> float:
        """Change about this share of elements by one in the last place, as an optimizer does.

        Every weight moves by a similar amount, which shows in bf16 more often for small weights.

        Returns:
            The share of elements that changed.
        """
        chances = self._chances(share)
        changed = 0
        for part in self._parts():
            hit = np.flatnonzero(self._rng.random(len(part), np.float32) < chances[exponent(part)])
            up = self._rng.random(len(hit), np.float32) < 0.5
            part[hit] += np.where(up, 1, 0xFFFF).astype(np.uint16)
            changed += len(hit)
        return changed / len(self.flat)

    def _parts(self) -> Iterator[Array]:
        for start in range(0, len(self.flat), _BLOCK):
            yield self.flat[start : start + _BLOCK]

    def _chances(self, share: float) -> Array:
        """Return the chance of a change by exponent, inversely proportional to the last place."""
        counts = np.bincount(exponent(self.flat[::64]), minlength=CLASSES)
        steps = 2.0 ** (CLASSES // 2 - np.arange(CLASSES))
        steps[0] = 0  # a zero must not become a NaN
        low, high = 1e-12, 1e12
        for _ in range(60):
            middle = (low * high) ** 0.5
            found = (counts * np.minimum(1, middle * steps)).sum() / counts.sum()
            low, high = (middle, high) if found < share else (low, middle)
        chances: Array = np.minimum(1, low * steps).astype(np.float32)
        return chances
