"""A copy of a state's bits in host memory, used to find changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.content.torch_types import tensor_bytes
from casweights.format.layout import grid
from casweights.sync.changes import ChunkRef, find_change
from casweights.sync.devices import (
    device_changes,
    flat_patterns,
    host_memory,
    host_patterns,
    is_on_host,
)
from casweights.sync.tensor_groups import make_batches
from casweights.system.buffers import copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from casweights.content.states import StateFile
    from casweights.format.safetensors import TensorInfo
    from casweights.sync.changes import ElementChange
    from casweights.system.threads import Workers


class StateCopy:
    """A copy of a state in host memory; updating it finds the changes.

    Small tensors are compared in batches, the others chunk by chunk. While `update` runs, no other
    thread may read the copy. If it fails, the copy is a mixture of two states.

    Args:
        state: The state; its bits are copied.
        chunk_size: Bytes of a chunk.
        workers: Threads for copying and comparing.
        on_device: Whether to keep a second copy next to each tensor on an accelerator, so that
            only changes are copied to the host. Otherwise the copy is moved to the device for
            each comparison.
    """

    def __init__(
        self, state: StateFile, chunk_size: int, workers: Workers, *, on_device: bool
    ) -> None:
        self._chunk_size = chunk_size
        self._workers = workers
        self._memory: dict[str, memoryview] = {}
        self._shadows: dict[str, torch.Tensor] = {}  # second copies, on accelerators
        self._batches = list(make_batches(state, chunk_size, on_device=on_device))
        for batch in self._batches:
            self._memory.update(batch.parts())
        self._single = [info for info in state.header.tensors if info.name not in self._memory]
        for info in self._single:
            self._copy_tensor(info, state.tensor(info.name), on_device=on_device)

    def _copy_tensor(self, info: TensorInfo, live: torch.Tensor, *, on_device: bool) -> None:
        """Make the first copy of a tensor, and its second copy on an accelerator if wanted."""
        memory = self._memory[info.name] = host_memory(info.nbytes, live)
        if is_on_host(live):
            for _ in self._workers.map(self._copy_chunk, self._chunks(info, tensor_bytes(live))):
                pass
            return
        flat = flat_patterns(live.contiguous())
        if on_device:  # fill both copies from one snapshot: the tensor may change in between
            flat = self._shadows[info.name] = flat.clone()
        host_patterns(memory, flat).copy_(flat)

    def _copy_chunk(self, job: tuple[ChunkRef[str], int, memoryview]) -> None:
        ref, _, data = job
        copy(self.chunk(ref), data)

    def _chunks(
        self, info: TensorInfo, data: memoryview
    ) -> Iterator[tuple[ChunkRef[str], int, memoryview]]:
        """Yield the chunks of a tensor, each with the bytes of one element and its own content."""
        for piece in grid(0, info.nbytes, info.dtype, self._chunk_size):
            ref = ChunkRef(info.name, piece.number)
            yield ref, piece.dtype.width, data[piece.offset : piece.offset + piece.nbytes]

    def chunk(self, ref: ChunkRef[str]) -> memoryview:
        """Return the bytes of a chunk, without a copy."""
        start = ref.number * self._chunk_size
        return self._memory[ref.tensor][start : start + self._chunk_size]

    def update(self, state: StateFile) -> Iterator[tuple[ChunkRef[str], ElementChange]]:
        """Find the changes of a state of the same layout, and make them in the copy, too.

        Yields:
            The chunks that changed, each with the change that undoes it.
        """
        for batch in self._batches:
            for name, change in batch.update(state):
                yield ChunkRef(name, 0), change
        hosted = []
        for info in self._single:
            if is_on_host(state.tensors[info.name]):
                hosted.append(info)
            else:
                yield from self._update_from_device(info, state.tensor(info.name))
        jobs = (
            job
            for info in hosted
            for job in self._chunks(info, tensor_bytes(state.tensor(info.name)))
        )
        yield from filter(None, self._workers.map(self._update_chunk, jobs))

    def _update_chunk(
        self, job: tuple[ChunkRef[str], int, memoryview]
    ) -> tuple[ChunkRef[str], ElementChange] | None:
        """Update a chunk from its new bytes; return it with its undo change, None if equal."""
        ref, width, data = job
        kept = self.chunk(ref)
        change = find_change(kept, data, width)
        if change is None:
            return None
        change.exchange(kept)
        return ref, change

    def _update_from_device(
        self, info: TensorInfo, tensor: torch.Tensor
    ) -> Iterator[tuple[ChunkRef[str], ElementChange]]:
        """Update the copies of a tensor on an accelerator; yield its chunks that changed."""
        live = flat_patterns(tensor.contiguous())
        shadow = self._shadows.get(info.name)
        kept = host_patterns(self._memory[info.name], live) if shadow is None else shadow
        found = device_changes(live, kept, self._chunk_size, advance=shadow is not None)
        for number, change in found:
            ref = ChunkRef(info.name, number)
            change.exchange(self.chunk(ref))
            yield ref, change
