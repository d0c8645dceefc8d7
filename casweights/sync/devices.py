"""Finding and making changes of tensors with torch, mainly on accelerators.

Only the changed elements and their positions are copied to the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from casweights.content.torch_types import patterns
from casweights.sync.changes import POSITION, ElementChange
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEGMENT_BYTES = 64 << 20  # compared at a time; finding positions needs several times this memory


def is_on_host(tensor: torch.Tensor) -> bool:
    """Whether a tensor is in host memory."""
    return tensor.device.type == "cpu"


def host_memory(nbytes: int, live: torch.Tensor) -> memoryview:
    """Allocate host memory for a copy of a tensor.

    For a tensor on a CUDA device it is pinned, so that copies run concurrently with other work.
    """
    if live.device.type != "cuda":
        return uninitialized(nbytes)
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy().data


def flat_patterns(tensor: torch.Tensor) -> torch.Tensor:
    """View a contiguous tensor as a flat tensor of integers with the same bits."""
    return patterns(tensor.detach()).as_strided((tensor.numel(),), (1,))


def host_patterns(memory: memoryview, like: torch.Tensor) -> torch.Tensor:
    """View host memory as a flat tensor of integers of the dtype of `like`."""
    if not memory:  # torch refuses an empty buffer
        return torch.empty(0, dtype=like.dtype)
    return torch.frombuffer(memory, dtype=like.dtype)


def device_changes(
    live: torch.Tensor, kept: torch.Tensor, chunk_size: int, *, advance: bool = False
) -> Iterator[tuple[int, ElementChange]]:
    """Find the changes that turn the elements of `kept` into those of `live`.

    Args:
        live: Flat integers, on any device.
        kept: The same number of integers, on the same device or on the host.
        chunk_size: Bytes of a chunk.
        advance: Whether to make the same changes in `kept`, which must then be on the device of
            `live`. `kept` receives exactly the values of the changes, even if another thread
            writes to `live` at the same time.

    Yields:
        The number of each chunk that differs, and its change.
    """
    width = live.element_size()
    per_chunk = chunk_size // width
    segment = max(1, _SEGMENT_BYTES // chunk_size) * per_chunk
    for start in range(0, len(live), segment):
        new = live[start : start + segment]
        old = kept[start : start + segment].to(live.device, non_blocking=True)
        differing = torch.nonzero(new != old).flatten()
        changed = new[differing]
        if advance:
            old.index_copy_(0, differing, changed)
        values = changed.cpu().numpy().view(np.uint8)
        positions = differing.cpu().numpy()
        first = start // per_chunk
        numbers = range(first, first + -(-len(new) // per_chunk))
        cuts = np.searchsorted(positions, [per_chunk * n for n in range(len(numbers) + 1)])
        for n, number in enumerate(numbers):
            if cuts[n] < cuts[n + 1]:
                local = (positions[cuts[n] : cuts[n + 1]] - per_chunk * n).astype(POSITION)
                part = values[width * cuts[n] : width * cuts[n + 1]]
                yield number, ElementChange(local.tobytes(), bytearray(part.data), width)


def device_exchange(live: torch.Tensor, start: int, stop: int, change: ElementChange) -> None:
    """Make a change in a chunk of a tensor, in place; like `ElementChange.exchange`.

    Args:
        live: The tensor as integers: flat, or of any shape and strides.
        start: Index of the chunk's first element, in C order.
        stop: Index after the chunk's last element.
        change: The change; afterwards it holds the previous values.
    """
    values = torch.frombuffer(change.values, dtype=live.dtype).to(live.device)
    # Copy the previous values to the host before overwriting any of them: a failure up to that
    # point has changed nothing.
    if change.positions is None and live.dim() == 1:
        before = _host_bytes(live[start:stop])
        live[start:stop].copy_(values)
    else:
        index = _index(change, start, stop).to(live.device)
        if live.dim() == 1:
            before = _host_bytes(live[index])
            live.index_copy_(0, index, values)
        else:
            indices = torch.unravel_index(index, live.shape)
            before = _host_bytes(live[indices])
            live.index_put_(indices, values)
    change.values = before


def _host_bytes(elements: torch.Tensor) -> bytearray:
    """Copy the bytes of flat elements to the host."""
    return bytearray(elements.cpu().contiguous().numpy().view(np.uint8).data)


def _index(change: ElementChange, start: int, stop: int) -> torch.Tensor:
    """Return the flat indices, in the whole tensor, of the elements that a change exchanges."""
    if change.positions is None:
        return torch.arange(start, stop)
    local = np.frombuffer(change.positions, POSITION)
    return torch.from_numpy(local.astype(np.int64) + start)
