"""Models of any size for the benchmark of buckets, and how they become files."""

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
_NORM = 2048  # as in real models: what is much smaller than that would not be like them
_SMALL = 64 * MiB  # below it, layers are thin, so that there still are some


class Model(Synthetic):
    """A synthetic model that may be small, and differs from seed to seed.

    Args:
        size: Bytes, about.
        seed: Of the weights and of the steps.
        hidden: Width of a layer; by default it goes with the size.
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
        """Bytes of all tensors."""
        return int(self.flat.nbytes)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors for torch, in the same memory."""
        return {
            name: torch.from_numpy(part.view(np.int16)).view(torch.bfloat16)
            for name, part in self.state.items()
        }

    def write_files(self, directory: Path) -> None:
        """Write two safetensors files and a configuration."""
        directory.mkdir(parents=True)
        items = list(self.state.items())
        middle = len(items) // 2
        for n, part in enumerate((items[:middle], items[middle:])):
            write_state(dict(part), directory / f"model-{n + 1:05}-of-00002.safetensors")
        (directory / "config.json").write_text(json.dumps({"model_type": "synthetic"}))


def write_large(directory: Path, size: int, seed: int) -> None:
    """Write a model that need not fit into memory, in files of at most 512 MiB."""
    directory.mkdir(parents=True)
    model = Model(min(size, 512 * MiB), seed)
    for n in range(max(1, round(size / model.nbytes))):
        model.make()
        model.write(directory / f"model-{n:05}.safetensors")
