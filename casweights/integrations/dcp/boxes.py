"""Reading boxes (rectangular parts) of stored tensors, from the chunks that contain their rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.content.torch_types import allocate
from casweights.events import Stage
from casweights.format.safetensors import TensorInfo
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from casweights.content.selection import StoredTensor
    from casweights.database import Database
    from casweights.database.reader import LocalFirstReader
    from casweights.ids import ChunkId


class Box(NamedTuple):
    """A part of a stored tensor to read.

    Attributes:
        stored: The tensor.
        slices: One slice for each dimension, in elements as torch counts them; empty for the
            whole tensor.
        deliver: Receives the part once it is read.
    """

    stored: StoredTensor
    slices: tuple[slice, ...]
    deliver: Callable[[torch.Tensor], None]


class _Rows(NamedTuple):
    """The range of whole rows that contains a box.

    Attributes:
        start: Offset of the first row in the tensor's bytes.
        stop: Offset of the end of the last row.
        shape: The shape of these rows.
        slices: The box as slices of these rows.
    """

    start: int
    stop: int
    shape: tuple[int, ...]
    slices: tuple[slice, ...]

    @classmethod
    def of(cls, box: Box) -> _Rows:
        """Return the rows of a box."""
        info = box.stored.info
        # Rows of packed elements need not begin at a byte: torch slices the whole tensor then.
        if not box.slices or not info.nbytes or info.dtype.bits < 8:
            return cls(0, info.nbytes, info.shape, box.slices)
        first, *rest = box.slices
        row = info.nbytes // info.shape[0]
        count = first.stop - first.start
        shape = (count, *info.shape[1:])
        return cls(first.start * row, first.stop * row, shape, (slice(0, count), *rest))

    def chunks(self, stored: StoredTensor, size: int) -> range:
        """Return the numbers of the chunks that contain the rows, for a chunk size in bytes."""
        last = -(-self.stop // size) if self.stop > self.start else 0
        return range(min(self.start // size, last), min(last, len(stored.chunks)))


class _Read(NamedTuple):
    """A chunk to read, and the memory for the part of it that belongs to the rows.

    Attributes:
        chunk: The chunk's ID.
        nbytes: Bytes of the whole chunk.
        skip: Offset of the part in the chunk.
        out: The memory for the part.
    """

    chunk: ChunkId
    nbytes: int
    skip: int
    out: memoryview


class _Filled(NamedTuple):
    """A box whose chunks have all been handed to the workers."""

    box: Box
    part: torch.Tensor


def read_boxes(db: Database, boxes: Sequence[Box]) -> None:
    """Read boxes one after another, with their chunks on all threads.

    Raises:
        IntegrityError: The store is damaged.
        UnsupportedError: Torch cannot hold one of the tensors.
    """
    size = db.config.chunk_size
    rows = [_Rows.of(box) for box in boxes]
    wanted = [
        box.stored.chunks[number]
        for box, span in zip(boxes, rows, strict=True)
        for number in span.chunks(box.stored, size)
    ]
    reader = db.reader.with_local(db.cache)
    db.reporter.started(Stage.LOAD, sum(span.stop - span.start for span in rows))
    try:
        with reader.ahead() as announce:
            announce(wanted)
            _read_all(db, reader, boxes, rows)
    finally:
        db.reporter.finished(Stage.LOAD)


def _read_all(
    db: Database, reader: LocalFirstReader, boxes: Sequence[Box], rows: Sequence[_Rows]
) -> None:
    """Read the chunks of all boxes, and deliver each box once it is complete."""

    def steps() -> Iterator[_Read | _Filled]:
        for box, span in zip(boxes, rows, strict=True):
            tensor, memory = allocate(_info(box, span))
            yield from _reads(box.stored, span, memory, db.config.chunk_size)
            yield _Filled(box, tensor[span.slices])

    for done in db.workers.map(partial(_step, db, reader), steps()):
        if isinstance(done, _Filled):  # results come in order, so all its chunks are read
            done.box.deliver(done.part)
        else:
            db.reporter.advanced(Stage.LOAD, done)


def _info(box: Box, span: _Rows) -> TensorInfo:
    """Describe the rows as a tensor of their own, to allocate."""
    info = box.stored.info
    return TensorInfo(info.name, info.dtype, span.shape, 0, span.stop - span.start)


def _reads(stored: StoredTensor, span: _Rows, memory: memoryview, size: int) -> Iterator[_Read]:
    """Yield the reads that fill `memory` with the rows of a tensor."""
    for number in span.chunks(stored, size):
        begin = number * size
        nbytes = min(size, stored.info.nbytes - begin)
        start, stop = max(begin, span.start), min(begin + nbytes, span.stop)
        out = memory[start - span.start : stop - span.start]
        yield _Read(stored.chunks[number], nbytes, start - begin, out)


def _step(db: Database, reader: LocalFirstReader, step: _Read | _Filled) -> int | _Filled:
    """Perform a read and return its number of bytes; pass a filled box through."""
    if isinstance(step, _Filled):
        return step
    whole = step.out if len(step.out) == step.nbytes else uninitialized(step.nbytes)
    reader.readinto(step.chunk, whole)
    db.cache.put(step.chunk, whole)
    if whole is not step.out:
        step.out[:] = whole[step.skip : step.skip + len(step.out)]
    return len(step.out)
