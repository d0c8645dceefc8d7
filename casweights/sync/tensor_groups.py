"""Small tensors in consecutive memory, so that many are copied and compared at once."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from casweights.sync.changes import POSITION, ElementChange, find_change
from casweights.sync.devices import (
    device_changes,
    flat_patterns,
    host_memory,
    host_patterns,
    is_on_host,
)
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.content.states import StateFile
    from casweights.format.safetensors import TensorInfo

_MAX_BATCHED_BYTES = 16 << 10  # of a tensor; for larger ones the cost per tensor is negligible
_DTYPES_AS_BYTES = ("BOOL", "F4")  # torch normalizes the bytes of BOOL, and cannot copy F4


class Batch:
    """Small tensors of one dtype on one device, and a copy of their last bits.

    Args:
        infos: The tensors, in the order in which their bits are kept.
        state: The first state whose bits are kept.
        staging: Scratch memory on the tensors' device, of at least their size. Batches may share
            it.
        on_device: Whether to keep another copy on an accelerator, so that only changes are copied
            to the host. Otherwise the host's copy is moved to the device for each comparison.
    """

    def __init__(
        self,
        infos: Sequence[TensorInfo],
        state: StateFile,
        staging: torch.Tensor,
        *,
        on_device: bool,
    ) -> None:
        live = [state.tensors[info.name] for info in infos]
        size = sum(info.nbytes for info in infos)
        self._infos = infos
        self._names = [info.name for info in infos]
        self._width = infos[0].dtype.width
        self._stops = np.cumsum([info.nbytes // self._width for info in infos])
        self._as_bytes = infos[0].dtype.code in _DTYPES_AS_BYTES
        dtype = torch.uint8 if self._as_bytes else state.outline.dtypes[infos[0].name]
        self._elements = elements = staging[:size].view(dtype)
        parts = torch.split(elements, [tensor.numel() for tensor in live])
        self._copies = [part.view(tensor.shape) for part, tensor in zip(parts, live, strict=True)]
        self._staged = flat_patterns(elements)
        self._memory = host_memory(size, live[0])
        self._is_on_host = is_on_host(live[0])
        self._stage(state)
        host_patterns(self._memory, self._staged).copy_(self._staged)
        self._shadow = self._staged.clone() if on_device and not self._is_on_host else None

    def parts(self) -> Iterator[tuple[str, memoryview]]:
        """Yield the name of each tensor, and the memory that keeps its bits."""
        rest = self._memory
        for info in self._infos:
            yield info.name, rest[: info.nbytes]
            rest = rest[info.nbytes :]

    def update(self, state: StateFile) -> list[tuple[str, ElementChange]]:
        """Replace the kept bits by those of a state of the same layout.

        Returns:
            The name of each tensor that changed, with the change that undoes it.
        """
        self._stage(state)
        change = self._find_change()
        if change is None:
            return []
        change.exchange(self._memory)
        return list(self._split(change))

    def _stage(self, state: StateFile) -> None:
        """Copy the tensors of a state to the staging memory, in the dtype of their publication."""
        live = [state.tensors[name] for name in self._names]
        with torch.inference_mode():  # required for tensors that were created in that mode
            if self._as_bytes:
                live = [tensor.view(torch.uint8) for tensor in live]
            torch._foreach_copy_(self._copies, live)
            # When torch casts a NaN, its bits depend on the loop that torch chooses. The bits that
            # count are those of casting each tensor by itself.
            if state.outline.cast and _has_nan(self._elements):
                torch._foreach_copy_(self._copies, [state.tensor(name) for name in self._names])

    def _find_change(self) -> ElementChange | None:
        """Return the change that turns the kept bits into the staged ones; None if equal."""
        if self._is_on_host:
            return find_change(self._memory, self._staged.numpy().view(np.uint8).data, self._width)
        kept = self._shadow
        if kept is None:
            kept = host_patterns(self._memory, self._staged)
        advance = self._shadow is not None
        found = device_changes(self._staged, kept, len(self._memory), advance=advance)
        return next((change for _, change in list(found)), None)

    def _split(self, undo: ElementChange) -> Iterator[tuple[str, ElementChange]]:
        """Split a change of the batch into the changes of its tensors, by name."""
        positions, values = self._differing(undo)
        numbers = np.searchsorted(self._stops, positions, side="right")
        changed, firsts = np.unique(numbers, return_index=True)
        begins = np.concatenate(([0], self._stops))[numbers]
        local = (positions - begins).astype(POSITION).tobytes()
        cuts = pairwise([*firsts.tolist(), len(positions)])
        for number, (first, stop) in zip(changed.tolist(), cuts, strict=True):
            positions_of = local[POSITION.itemsize * first : POSITION.itemsize * stop]
            before = bytearray(values[self._width * first : self._width * stop])
            yield (
                self._names[number],
                self._shortest(number, ElementChange(positions_of, before, self._width)),
            )

    def _differing(self, undo: ElementChange) -> tuple[np.ndarray, memoryview]:
        """Return the positions and former bytes of the elements that differ from before."""
        if undo.positions is not None:
            return np.frombuffer(undo.positions, POSITION), memoryview(undo.values)
        kind = f"<u{self._width}"
        before, after = np.frombuffer(undo.values, kind), np.frombuffer(self._memory, kind)
        positions = np.flatnonzero(before != after)
        return positions, before[positions].view(np.uint8).data

    def _shortest(self, number: int, undo: ElementChange) -> ElementChange:
        """Return an equivalent change that needs no more memory than the tensor itself."""
        nbytes = self._infos[number].nbytes
        if undo.nbytes <= nbytes:
            return undo
        if len(undo.values) == nbytes:
            return ElementChange(None, undo.values, self._width)
        stop = int(self._stops[number]) * self._width
        before = bytearray(self._memory[stop - nbytes : stop])
        undo.write(memoryview(before))
        return ElementChange(None, before, self._width)


def make_batches(state: StateFile, limit: int, *, on_device: bool) -> Iterator[Batch]:
    """Group the small tensors of a state into batches of at most `limit` bytes each.

    Args:
        state: The state; the batches keep its bits.
        limit: Maximum bytes of a batch; at least the size of the largest small tensor.
        on_device: See `Batch`.
    """
    groups: dict[tuple[torch.device, str], list[TensorInfo]] = {}
    for info in state.header.tensors:
        if 0 < info.nbytes <= _MAX_BATCHED_BYTES:
            group = state.tensors[info.name].device, info.dtype.code
            groups.setdefault(group, []).append(info)
    sizes: dict[torch.device, int] = {}
    for (device, _), infos in groups.items():
        size = min(limit, sum(info.nbytes for info in infos))
        sizes[device] = max(size, sizes.get(device, 0))
    stagings = {device: _staging(size, device) for device, size in sizes.items()}
    for (device, _), infos in groups.items():
        for part in _parts(infos, limit):
            yield Batch(part, state, stagings[device], on_device=on_device)


def _has_nan(elements: torch.Tensor) -> bool:
    return elements.is_floating_point() and bool(torch.isnan(elements).any())


def _staging(size: int, device: torch.device) -> torch.Tensor:
    """Allocate scratch memory on a device."""
    if device.type == "cpu":
        return torch.frombuffer(uninitialized(size), dtype=torch.uint8)
    return torch.empty(size, dtype=torch.uint8, device=device)


def _parts(infos: Iterable[TensorInfo], limit: int) -> Iterator[list[TensorInfo]]:
    """Split a list of tensors into lists of at most `limit` bytes."""
    part: list[TensorInfo] = []
    left = limit
    for info in infos:
        if info.nbytes > left:
            yield part
            part, left = [], limit
        part.append(info)
        left -= info.nbytes
    yield part
