"""The patch file of TRL's third weight transfer: gaps in 16 bits and new values, by tensor.

Encoded with torch, as a trainer would, from the weights that the last patch was made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from peers import trl_v3_decode
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from peers import State


class Patches:
    """Keeps the previous weights.

    Args:
        state: The tensors, of which later patches have the changes.
    """

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self._state = {name: tensor.view(torch.int16) for name, tensor in state.items()}
        self._before = {name: tensor.clone() for name, tensor in self._state.items()}
        self._checked = {name: tensor.numpy().copy() for name, tensor in self._before.items()}

    def write(self, path: Path) -> None:
        """Write what changed since the last patch."""
        tensors: dict[str, torch.Tensor] = {}
        for name, new in self._state.items():
            old = self._before[name]
            places = torch.nonzero(new != old).flatten()
            if not len(places):
                continue
            values = new[places]
            old[places] = values
            gaps = torch.diff(places, prepend=places.new_zeros(1)).numpy()
            small = gaps.astype(np.uint16 if gaps.max() < 1 << 16 else np.uint32)
            tensors[f"{name}.idx"] = torch.from_numpy(small)
            tensors[f"{name}.val"] = values.view(torch.bfloat16)
        save_file(tensors, path)

    def check(self, path: Path, state: State) -> None:
        """Compare what the first patch makes of the first weights with these.

        Raises:
            AssertionError: They differ.
        """
        base = {name: old.view(np.uint16) for name, old in self._checked.items()}
        self._checked = {}
        patched = trl_v3_decode_bf16(base, path)
        if any((patched[name] != new).any() for name, new in state.items()):
            raise AssertionError("the patch does not give the new weights")


def trl_v3_decode_bf16(base: State, path: Path) -> State:
    """`trl_v3_decode`, for values that are marked as bf16, which numpy does not have."""
    payload = path.read_bytes()
    size = int.from_bytes(payload[:8], "little")
    head = payload[8 : 8 + size].replace(b'"BF16"', b'"U16" ')
    return trl_v3_decode(base, payload[:8] + head + payload[8 + size :])
