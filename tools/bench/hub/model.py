"""Synthetic models of any size for the benchmarks of buckets and sync."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch

from tools.bench.encodings.data import write_state
from tools.bench.encodings.synthetic import Synthetic

if TYPE_CHECKING:
    from pathlib import Path

MiB = 1 << 20
_NORM = 2048  # elements, as in real models; much smaller tensors would not be realistic
_SMALL = 64 * MiB  # below this size layers are thin, so that a model still has several


class Model(Synthetic):
    """A synthetic model of any size, whose weights depend on a seed.

    Args:
        size: Approximate number of bytes.
        seed: Seed of the weights and of the steps.
        hidden: Width of a layer; by default it depends on the size.
    """

    def __init__(self, size: int, seed: int, hidden: int | None = None) -> None:
        self._rng = np.random.Generator(np.random.SFC64(seed))
        hidden = hidden or (2048 if size >= _SMALL else 64)
        inner = hidden * 11 // 4
        layer = {f"attn.{name}": hidden * hidden for name in "qkvo"}
        layer |= {f"mlp.{name}": hidden * inner for name in ("up", "gate", "down")}
        layer["norm"] = max(hidden, _NORM)
        layers = max(1, round(size / 2 / sum(layer.values())))
        lengths = {
            f"layers.{n:03}.{k}": length for n in range(layers) for k, length in layer.items()
        }
        lengths = dict(sorted(lengths.items()))
        self.flat = np.empty(sum(lengths.values()), np.uint16)
        ends = np.cumsum(list(lengths.values()))
        self.state = dict(zip(lengths, np.split(self.flat, ends[:-1]), strict=True))

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return int(self.flat.nbytes)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return torch tensors that share the memory of the model."""
        return {
            name: torch.from_numpy(part.view(np.int16)).view(torch.bfloat16)
            for name, part in self.state.items()
        }

    def write_files(self, directory: Path) -> None:
        """Write the model as two safetensors files and a configuration."""
        directory.mkdir(parents=True)
        items = list(self.state.items())
        middle = len(items) // 2
        for n, part in enumerate((items[:middle], items[middle:])):
            write_state(dict(part), directory / f"model-{n + 1:05}-of-00002.safetensors")
        (directory / "config.json").write_text(json.dumps({"model_type": "synthetic"}))


def write_large(directory: Path, size: int, seed: int) -> None:
    """Write a model of any size, in files of at most 512 MiB, each made in memory by itself."""
    directory.mkdir(parents=True)
    model = Model(min(size, 512 * MiB), seed)
    for n in range(max(1, round(size / model.nbytes))):
        model.make()
        model.write(directory / f"model-{n:05}.safetensors")
