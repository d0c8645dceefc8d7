"""Small tensors, side by side in one memory, so that many are copied and compared at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from casweights.content.states import is_plain_memory
from casweights.sync.changes import POSITION, find_change
from casweights.sync.devices import host_patterns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.content.states import StateFile
    from casweights.format.safetensors import TensorInfo

_SMALL = 16 << 10  # bytes of a tensor; a larger one is worth the work of its own
_UNSAFE = ("BOOL", "F4")  # torch normalizes the bytes of the one, and cannot copy the other


class Batch:
    """Neighbouring small tensors of one dtype in host memory.

    Args:
        infos: The tensors, which have `memory` in this order.
        memory: Where their bits are kept.
        live: The same tensors, for their dtypes and shapes.
        staging: At least as much memory, to copy tensors to; batches may share it.
    """

    def __init__(
        self,
        infos: Sequence[TensorInfo],
        memory: memoryview,
        live: Sequence[torch.Tensor],
        staging: memoryview,
    ) -> None:
        self.infos = infos
        self._memory = memory
        self._staging = staging[: len(memory)]
        self._width = infos[0].dtype.width
        self._stops = np.cumsum([info.nbytes // self._width for info in infos])
        patterns = host_patterns(self._staging, live[0])
        parts = torch.split(patterns, [tensor.numel() for tensor in live])
        self._copies = [part.view(tensor.shape) for part, tensor in zip(parts, live, strict=True)]

    def stage(self, state: StateFile) -> None:
        """Copy the tensors of a state of the same layout to the staging memory."""
        live = [state.tensors[info.name] for info in self.infos]
        with torch.inference_mode():  # which tensors made in that mode demand
            torch._foreach_copy_(self._copies, live)

    def keep(self) -> None:
        """Keep the bits that are staged."""
        self._memory[:] = self._staging

    def changed(self) -> Iterator[tuple[TensorInfo, memoryview]]:
        """The tensors whose staged bits are others than those that are kept, with the former."""
        change = find_change(self._memory, self._staging, self._width)
        if change is None:
            return
        numbers: Sequence[int] = range(len(self.infos))
        if change.positions is not None:
            positions = np.frombuffer(change.positions, POSITION)
            numbers = np.unique(np.searchsorted(self._stops, positions, side="right")).tolist()
        for number in numbers:
            info = self.infos[number]
            start = (int(self._stops[number]) * self._width) - info.nbytes
            yield info, self._staging[start : start + info.nbytes]


def is_small(info: TensorInfo, state: StateFile) -> bool:
    """Whether a tensor of a state may go into a batch."""
    tensor = state.tensors[info.name]
    return (
        0 < info.nbytes <= _SMALL
        and info.dtype.code not in _UNSAFE
        and state.outline.dtypes[info.name] == tensor.dtype
        and is_plain_memory(tensor)
    )
