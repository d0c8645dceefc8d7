"""Reading boxes (rectangular parts) of stored tensors, from the chunks that contain their rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.content.spans import reads_of
from casweights.content.torch_types import allocate
from casweights.events import Stage
from casweights.format.safetensors import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    import torch

    from casweights.content.spans import ChunkRead, StoredTensor
    from casweights.database import Database
    from casweights.database.reader import LocalFirstReader


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


class _Filled(NamedTuple):
    """A box whose chunks have all been handed to the workers."""

    box: Box
    part: torch.Tensor


def read_boxes(db: Database, boxes: Sequence[Box]) -> None:
    """Read boxes, with their chunks on all threads.

    Boxes of small tensors that share a chunk are read together, the others one after another.

    Raises:
        IntegrityError: The store is damaged.
        UnsupportedError: Torch cannot hold one of the tensors.
    """
    groups: dict[Hashable, list[Box]] = {}
    for number, box in enumerate(boxes):
        key = number if box.stored.is_alone else box.stored.chunks
        groups.setdefault(key, []).append(box)
    together = [[(box, _Rows.of(box)) for box in group] for group in groups.values()]
    rows = [pair for group in together for pair in group]
    wanted = [
        chunk
        for group in together
        for chunk in dict.fromkeys(
            span.chunk for box, part in group for span in box.stored.spans(part.start, part.stop)
        )
    ]
    reader = db.reader.with_local(db.cache)
    db.reporter.started(Stage.LOAD, sum(part.stop - part.start for _, part in rows))
    try:
        with reader.ahead() as announce:
            announce(wanted)
            _read_all(db, reader, together)
    finally:
        db.reporter.finished(Stage.LOAD)


def _read_all(
    db: Database, reader: LocalFirstReader, groups: Sequence[Sequence[tuple[Box, _Rows]]]
) -> None:
    """Read the chunks of all boxes, and deliver each box once it is complete."""
    for done in db.workers.map(partial(_step, db, reader), _steps(groups)):
        if isinstance(done, _Filled):  # results come in order, so all its chunks are read
            done.box.deliver(done.part)
        else:
            db.reporter.advanced(Stage.LOAD, done)


def _steps(groups: Sequence[Sequence[tuple[Box, _Rows]]]) -> Iterator[ChunkRead | _Filled]:
    for group in groups:
        allocated = [allocate(_info(box, rows)) for box, rows in group]
        yield from reads_of(
            (box.stored.spans(rows.start, rows.stop), memory)
            for (box, rows), (_, memory) in zip(group, allocated, strict=True)
        )
        for (box, rows), (tensor, _) in zip(group, allocated, strict=True):
            yield _Filled(box, tensor[rows.slices])


def _info(box: Box, span: _Rows) -> TensorInfo:
    """Describe the rows as a tensor of their own, to allocate."""
    info = box.stored.info
    return TensorInfo(info.name, info.dtype, span.shape, 0, span.stop - span.start)


def _step(db: Database, reader: LocalFirstReader, step: ChunkRead | _Filled) -> int | _Filled:
    """Perform a read and return its number of bytes; pass a filled box through."""
    if isinstance(step, _Filled):
        return step
    step.perform(db, reader)
    return step.nbytes
