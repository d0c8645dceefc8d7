"""A small model that takes any number of steps like those of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.bench.encodings.data import to_bf16
from tools.bench.encodings.states import read_state

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.encodings.states import Array, State


class Walk:
    """A part of the real model that takes steps like AdamW's, with noise as gradients.

    Attributes:
        state: The current version, in bf16.
    """

    _TENSORS = (
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.output.dense.weight",
    )
    _LONGEST = 3 << 20  # elements
    _MOMENTUM = 0.9
    _TRIALS, _TRIAL = 4, 10  # searches for the rate, and steps after each

    def __init__(self, masters: Path, share: float) -> None:
        self._rng = np.random.Generator(np.random.SFC64(0))
        bits = read_state(masters)
        self._masters = {n: bits[n][: self._LONGEST].view(np.float32).copy() for n in self._TENSORS}
        self._moments = {n: self._noise(master) for n, master in self._masters.items()}
        self.state = self._rounded()
        self._scale = np.float32(np.sqrt(1 - self._MOMENTUM**2))
        for _ in range(self._TRIALS):  # at first more elements change, as many are near a rounding
            self._rate = np.float32(self._find_rate(share))
            for _ in range(self._TRIAL):
                self.step()

    def _noise(self, like: Array) -> Array:
        return self._rng.standard_normal(len(like), np.float32)

    def _rounded(self) -> State:
        return {name: to_bf16(m.view(np.uint32)) for name, m in self._masters.items()}

    def _find_rate(self, share: float) -> float:
        low, high = 1e-9, 1e-3
        for _ in range(20):
            rate = (low * high) ** 0.5
            changed = 0
            for name, master in self._masters.items():
                moved = master + np.float32(rate) * self._moments[name]
                changed += int(np.count_nonzero(to_bf16(moved.view(np.uint32)) != self.state[name]))
            low, high = (rate, high) if changed < share * self.elements else (low, rate)
        return low

    @property
    def elements(self) -> int:
        return sum(map(len, self._masters.values()))

    def step(self) -> None:
        for name, master in self._masters.items():
            moment = self._moments[name]
            moment *= np.float32(self._MOMENTUM)
            moment += self._scale * self._noise(master)
            master += self._rate * moment
        self.state = self._rounded()
