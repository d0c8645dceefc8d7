"""Live tensors: reading, comparing and changing their chunks in place, on any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from casweights.config import KiB
from casweights.content.torch_types import is_plain_memory, patterns, tensor_bytes
from casweights.errors import ErrorCode, InvalidInputError
from casweights.sync.changes import ElementChange, find_change
from casweights.sync.devices import device_changes, device_exchange, flat_patterns
from casweights.system.buffers import copy

if TYPE_CHECKING:
    from casweights.content.spans import Span

# Bytes; starting a comparison on a device takes longer than copying a smaller tensor to the host.
_COMPARED_ON_DEVICE = 64 * KiB


class LiveTensor:
    """A tensor of a running model, cut into chunks.

    Writes go to the tensor's own storage, so views of it and captured graphs stay valid.

    Args:
        tensor: The tensor.
        chunk_size: Bytes of a chunk.

    Attributes:
        tensor: The tensor.
        nbytes: Bytes of the tensor.
        width: Bytes of an element.
        holds: For each chunk, the bytes of a stored chunk that it has; None where unknown.
    """

    def __init__(self, tensor: torch.Tensor, chunk_size: int) -> None:
        self.tensor = tensor
        self.nbytes = tensor.nbytes
        self.width = tensor.element_size()
        self.holds: list[Span | None] = [None] * -(-tensor.nbytes // chunk_size)
        self._chunk_size = chunk_size
        self._count = _count_of(tensor)
        # Host memory is accessed as bytes, everything else through torch as integer patterns.
        self._memory: memoryview | None = None
        if is_plain_memory(tensor):
            self._memory = tensor_bytes(tensor)
        elif tensor.is_contiguous():
            self._patterns = flat_patterns(tensor)
        else:
            self._patterns = patterns(tensor.detach())

    def was_touched(self) -> bool:
        """Whether torch has counted a write to the tensor since the last `recount`."""
        return self._count != _count_of(self.tensor)

    def touched(self) -> None:
        """Let torch count a write to the tensor, so that autograd notices it."""
        if self._count is not None:
            torch.autograd.graph.increment_version(self.tensor)

    def recount(self) -> None:
        """Ignore all writes so far in `was_touched`."""
        self._count = _count_of(self.tensor)

    def forget(self) -> None:
        """Mark the content of all chunks as unknown, after other code wrote to the tensor."""
        self.holds = [None] * len(self.holds)
        self.recount()

    def size_of(self, number: int) -> int:
        """Bytes of a chunk."""
        return min(self._chunk_size, self.nbytes - number * self._chunk_size)

    def chunk(self, number: int) -> memoryview:
        """Return the bytes of a chunk: the tensor's own memory on the host, otherwise a copy."""
        start = number * self._chunk_size
        if self._memory is not None:
            return self._memory[start : start + self._chunk_size]
        first, last = start // self.width, (start + self.size_of(number)) // self.width
        part = _elements(self._patterns, first, last).cpu()
        return part.view(torch.uint8).numpy().data

    def readinto(self, number: int, out: memoryview) -> None:
        """Copy a chunk's bytes to `out`."""
        copy(out, self.chunk(number))

    def find_change(self, number: int, wanted: memoryview) -> ElementChange | None:
        """Return the change that turns a chunk into the wanted bytes; None if they are equal."""
        on_device = self._memory is None and self.nbytes >= _COMPARED_ON_DEVICE
        if not on_device or self._patterns.dim() != 1:
            return find_change(self.chunk(number), wanted, self.width)
        start = number * self._chunk_size // self.width
        live = self._patterns[start : start + len(wanted) // self.width]
        new = torch.frombuffer(wanted, dtype=live.dtype).to(live.device)
        return next((change for _, change in device_changes(new, live, len(wanted))), None)

    def exchange(self, number: int, change: ElementChange) -> None:
        """Make a change in a chunk, in place; see `ElementChange.exchange`."""
        if self._memory is not None:
            change.exchange(self.chunk(number))
            return
        start = number * self._chunk_size
        stop = (start + self.size_of(number)) // self.width
        with torch.inference_mode():  # torch refuses to write to inference tensors elsewhere
            device_exchange(self._patterns, start // self.width, stop, change)


def check_writable(tensor: torch.Tensor, name: str) -> None:
    """Check that a tensor can be written in place: each element needs memory of its own.

    Raises:
        InvalidInputError: The tensor cannot be written in place. The message names it.
    """
    expanded = tensor.numel() > 0 and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    if expanded or tensor.is_conj() or tensor.is_neg():
        kind = "an expanded" if expanded else "a conjugated or negated"
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"the tensor {name!r} is {kind} view, which cannot be written in place: pass a clone",
        )


def _elements(tensor: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Return a range of a tensor's elements, flat and in C order."""
    # Only the rows that contain them are flattened: flattening a view copies it.
    row = tensor[0].numel()
    top = first // row
    rows = tensor[top : -(-last // row)].reshape(-1)
    return rows[first - top * row : last - top * row].contiguous()


def _count_of(tensor: torch.Tensor) -> int | None:
    """A number that grows with every write that torch counts; None for inference tensors."""
    return None if tensor.is_inference() else tensor._version
