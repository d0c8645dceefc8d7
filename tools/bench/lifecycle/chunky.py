"""A small model with many chunks, which all change at every step."""

from __future__ import annotations

from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import xxhash

from tools.bench.encodings.data import write_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Snapshot

ELEMENTS = 512  # of a tensor, in bf16
_APART = 64  # a layer shares no chunk with the one before it if this divides its number's hash


class Chunky:
    """A model in which every tensor, in bf16, is one chunk.

    A store may put neighbouring small tensors into one chunk, but certain names keep tensors apart.
    The model has only such names.

    Args:
        chunks: Number of tensors.
    """

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        flat = np.random.Generator(np.random.SFC64(0)).standard_normal(
            (chunks, ELEMENTS), np.float32
        )
        self._rows = (flat.view(np.uint32) >> 16).astype(np.uint16)
        self._place = 0
        self.state = dict(zip(sorted(islice(_names(), chunks)), self._rows, strict=True))

    def step(self) -> None:
        """Change one element of every tensor by the last place of its mantissa."""
        self._rows[:, self._place % ELEMENTS] ^= 1
        self._place += 1

    def write(self, path: Path) -> None:
        """Write a safetensors file."""
        write_state(self.state, path)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors for torch, in the same memory."""
        return {
            name: torch.from_numpy(row.view(np.int16)).view(torch.bfloat16)
            for name, row in self.state.items()
        }

    def check(self, version: Snapshot) -> None:
        """Check that each tensor of a version of this model is one chunk.

        Raises:
            AssertionError: The number of chunks differs, so the figures would mean something else.
        """
        found = sum(len(file.chunks) for file in version.files)
        if found != self._chunks:
            raise AssertionError(f"a model of {self._chunks} chunks has {found}")


def _names() -> Iterator[str]:
    return (
        f"layer.{n}" for n in count() if xxhash.xxh3_64_intdigest(str(n).encode()) % _APART == 0
    )
