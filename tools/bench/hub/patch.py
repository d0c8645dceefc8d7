"""The patch files of TRL's weight transfer: one safetensors file per step.

The third format contains gaps in 16 bits and new values, the first one positions in 32 bits.
Changes are found by comparison with a copy of the previous weights: with torch, as in a trainer, or
with numpy, which is faster on a CPU. Tensors are divided among one thread per processor, and each
operation uses a single thread, because threads of torch wait for each other, which is very slow on
a busy machine.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from casweights.system.threads import default_workers
from tools.bench.encodings.patches import trl_v3_decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tools.bench.encodings.states import Array, Indices, State

_pool = ThreadPoolExecutor(default_workers(), initializer=lambda: torch.set_num_threads(1))


class Change(NamedTuple):
    """Changes of a tensor: flat positions, ascending, and the new values as bit patterns."""

    name: str
    places: Indices
    values: Array


class Patches:
    """Keeps a copy of the weights, and finds the changes since the last call.

    Args:
        state: The live tensors.
        numpy: Whether to compare with numpy instead of torch.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], *, numpy: bool = False) -> None:
        self._places = _places_numpy if numpy else _places_torch
        self._state = {name: _bits(tensor) for name, tensor in state.items()}
        self._before = {name: bits.copy() for name, bits in self._state.items()}

    def find(self) -> list[Change]:
        """Return the changes of all tensors since the last call."""
        return [change for change in _pool.map(self._find, self._state) if len(change.places)]

    def _find(self, name: str) -> Change:
        new, old = self._state[name], self._before[name]
        places = self._places(old, new)
        values = new[places]
        old[places] = values
        return Change(name, places, values)

    def write(self, path: Path) -> None:
        """Write the changes since the last call as a patch of the third format."""
        write_v3(self.find(), path)


def _places_numpy(old: Array, new: Array) -> Indices:
    return np.flatnonzero(new != old)


def _places_torch(old: Array, new: Array) -> Indices:
    places: Indices = (
        torch.nonzero(torch.from_numpy(new) != torch.from_numpy(old)).flatten().numpy()
    )
    return places


def write_v3(changes: Sequence[Change], path: Path) -> None:
    """Write a patch of the third format: values, and gaps in 16 bits, or 32 if they need more."""
    tensors: dict[str, torch.Tensor] = {}
    for name, places, values in changes:
        gaps = np.diff(places, prepend=0)
        small = gaps.astype(np.uint16 if gaps.max() < 1 << 16 else np.uint32)
        tensors[f"{name}.idx"] = torch.from_numpy(small)
        tensors[f"{name}.val"] = torch.from_numpy(values).view(torch.bfloat16)
    save_file(tensors, path)


def write_v1(changes: Sequence[Change], path: Path) -> None:
    """Write a patch of the first format: values, and positions in 32 bits."""
    tensors: dict[str, torch.Tensor] = {}
    for name, places, values in changes:
        tensors[f"{name}.indices"] = torch.from_numpy(places.astype(np.int32))
        tensors[f"{name}.values"] = torch.from_numpy(values).view(torch.bfloat16)
    save_file(tensors, path)


def apply_patch(path: Path, live: Mapping[str, torch.Tensor]) -> None:
    """Apply a patch of either format to flat tensors in place."""
    patch = load_file(path)

    def apply(key: str) -> None:
        name, _, kind = key.rpartition(".")
        if kind == "idx":
            places = torch.cumsum(patch[key].to(torch.int64), 0)
            live[name].index_copy_(0, places, patch[f"{name}.val"])
        elif kind == "indices":
            live[name].index_copy_(0, patch[key].to(torch.int64), patch[f"{name}.values"])

    for _ in _pool.map(apply, patch):
        pass


def _bits(tensor: torch.Tensor) -> Array:
    bits: Array = tensor.view(torch.int16).numpy()
    return bits


def check_v3(path: Path, base: State, state: State) -> None:
    """Check that a patch of the third format turns `base` into `state`.

    Raises:
        AssertionError: They differ.
    """
    patched = trl_v3_decode_bf16(base, path)
    if any((patched[name] != new).any() for name, new in state.items()):
        raise AssertionError("the patch does not produce the new weights")


def trl_v3_decode_bf16(base: State, path: Path) -> State:
    """Apply `trl_v3_decode` to a file with the dtype bf16, which numpy lacks."""
    payload = path.read_bytes()
    size = int.from_bytes(payload[:8], "little")
    head = payload[8 : 8 + size].replace(b'"BF16"', b'"U16" ')
    return trl_v3_decode(base, payload[:8] + head + payload[8 + size :])
