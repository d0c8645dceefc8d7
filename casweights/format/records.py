"""The `records` encoding: a chunk of records, whose fields are differences by themselves.

Formats of quantized weights store blocks: a scale, and some small numbers that it multiplies. As
bytes these are a mixture; as two streams, each has chances of its own. Where the scale of a block
changes, most of its numbers do, and by how much follows from the two scales.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.kernels import (
    expect,
    number_elements,
    pack_numbers,
    put_field,
    take_field,
    unpack_numbers,
)
from casweights.kernels.kinds import ElementKind
from casweights.kernels.reference.bits import PayloadReader, varint

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.system.buffers import Buffer

MAX_FIELDS = 8
MAX_RUNS = 65_536
NUMBERS = ElementKind.NUMBER  # what the numbers of a field become
HALVES = 4  # bits of a number of which two are a byte
_BYTES, _SCALE_BYTES = 0, 2


class Field(NamedTuple):
    """A field of a record.

    Attributes:
        bits: Bits of each of its numbers, 4 or 8; 0 for bytes.
        size: How many numbers or bytes it has.
        scale: Which field, from 1 on, is the scale of its numbers, an F16; 0 for none.
    """

    bits: int
    size: int
    scale: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the field."""
        return self.size * (self.bits or 8) // 8


class Run(NamedTuple):
    """Consecutive records.

    Attributes:
        skipped: Bytes between the run before, or the beginning of the chunk, and this one.
        records: Number of its records.
    """

    skipped: int
    records: int


class Records(NamedTuple):
    """Where the records of a chunk are, and what they consist of.

    Attributes:
        fields: The fields of each record, which follow each other.
        runs: The runs, in order. All other bytes are in no record.
    """

    fields: Sequence[Field]
    runs: Sequence[Run]

    @property
    def nbytes(self) -> int:
        """Bytes of a record."""
        return sum(field.nbytes for field in self.fields)

    def is_within(self, total: int) -> bool:
        """Whether a chunk of `total` bytes has room for all runs."""
        return sum(run.skipped + run.records * self.nbytes for run in self.runs) <= total

    def take_apart(self, data: Buffer) -> list[np.ndarray]:
        """Return a copy of the bytes in no record, and then of those of each field."""
        rest, runs = self._places(np.frombuffer(data, np.uint8))
        streams = [np.concatenate(rest)]
        for offset, field in self._offsets():
            stream = np.empty(self._count * field.nbytes, np.uint8)
            for run, own in self._shares(runs, stream, field):
                take_field(run.data, self.nbytes, offset, own.data)
            streams.append(stream)
        return streams

    def put_together(self, streams: Sequence[np.ndarray], out: memoryview) -> None:
        """Put the bytes that `take_apart` returned into `out`."""
        rest, runs = self._places(np.frombuffer(out, np.uint8))
        at = 0
        for piece in rest:
            piece[:] = streams[0][at : at + len(piece)]
            at += len(piece)
        for (offset, field), stream in zip(self._offsets(), streams[1:], strict=True):
            for run, own in self._shares(runs, stream, field):
                put_field(own.data, self.nbytes, offset, run.data)

    def spread(self, count: int, nbytes: int) -> list[slice]:
        """Return where about `count` times `nbytes` bytes of records are, spread over all."""
        places, at, each = [], 0, max(1, nbytes // self.nbytes)
        for skipped, records in self.runs:
            at += skipped
            pieces = -(-count * records // self._count)
            firsts = [records * n // pieces for n in range(pieces + 1)]
            for first, limit in pairwise(firsts):
                last = min(first + each, limit)
                places.append(slice(at + first * self.nbytes, at + last * self.nbytes))
            at += records * self.nbytes
        return places

    @property
    def _count(self) -> int:
        return sum(run.records for run in self.runs)

    def _places(self, data: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return views of the bytes in no record, and of those of each run."""
        rest, runs, at = [], [], 0
        for skipped, records in self.runs:
            start, at = at + skipped, at + skipped + records * self.nbytes
            rest.append(data[start - skipped : start])
            runs.append(data[start:at])
        return [*rest, data[at:]], runs

    def _offsets(self) -> Iterator[tuple[int, Field]]:
        """Yield each field and the bytes of a record before it."""
        starts = accumulate((field.nbytes for field in self.fields), initial=0)
        yield from zip(starts, self.fields, strict=False)

    def _shares(
        self, runs: Sequence[np.ndarray], stream: np.ndarray, field: Field
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each run and what a field's stream has of it."""
        at = 0
        for run in runs:
            end = at + len(run) // self.nbytes * field.nbytes
            yield run, stream[at:end]
            at = end


def all_halves(total: int) -> Records:
    """Return that a chunk of `total` bytes consists of numbers of 4 bits; of any rest, bytes."""
    return Records([Field(HALVES, 8)], [Run(0, total // 4)])


def expected(field: Field, old: Buffer, scales: tuple[Buffer, Buffer] | None) -> np.ndarray:
    """Return the elements that a field's numbers are expected to be, as u16.

    Args:
        field: The field, which has numbers.
        old: Its bytes in the base.
        scales: The bytes of its scale in the base and in the chunk; None if it has none.
    """
    count = len(memoryview(old)) * 8 // field.bits
    out = np.empty(count, "<u2")
    if scales is None:
        number_elements(old, field.bits, b"", out.data.cast("B"))
    else:
        numbers = np.empty(count, np.uint8)
        unpack_numbers(old, field.bits, numbers.data)
        expect(*scales, numbers.data, field.bits, out.data.cast("B"))
    return out


def elements(field: Field, new: Buffer, base: np.ndarray) -> np.ndarray:
    """Return the elements of a field's numbers, given those that are expected."""
    out = np.empty(len(base), "<u2")
    number_elements(new, field.bits, base.data.cast("B"), out.data.cast("B"))
    return out


def packed(field: Field, found: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return the bytes of a field's numbers; the inverse of `elements`.

    Raises:
        ValueError: An element differs from the expected one in more than its number.
    """
    out = np.empty(len(base) * field.bits // 8, np.uint8)
    pack_numbers(found.data.cast("B"), base.data.cast("B"), field.bits, out.data)
    return out


def join(records: Records, streams: Sequence[tuple[int, Buffer]]) -> bytes:
    """Return the payload with these streams, each with its encoding."""
    head = [bytes([len(records.fields)])]
    for field in records.fields:
        head.append(bytes([field.bits]) + varint(field.size))
        if field.bits:
            head.append(bytes([field.scale]))
    head.append(varint(len(records.runs)))
    head += [varint(number) for run in records.runs for number in run]
    head += [bytes([encoding]) + varint(len(payload)) for encoding, payload in streams]
    return b"".join((*head, *(payload for _, payload in streams)))


def split(payload: Buffer, total: int) -> tuple[Records, Iterator[tuple[int, memoryview]]]:
    """Return the records of a payload, and its streams with their encodings.

    Args:
        payload: What `join` returned.
        total: Bytes of the chunk.

    Raises:
        ValueError: The payload is malformed, or does not fit the chunk.
    """
    reader = PayloadReader(payload)
    fields: list[Field] = []
    for _ in range(_number_of_fields(reader)):
        fields.append(_read_field(reader, fields, total))
    runs = [Run(reader.varint(total), reader.varint(total)) for _ in range(reader.varint(MAX_RUNS))]
    records = Records(fields, runs)
    if not runs or not all(run.records for run in runs) or not records.is_within(total):
        raise ValueError("its records do not fit the chunk")
    heads = [(reader.byte(), reader.varint(len(payload))) for _ in range(len(fields) + 1)]
    if sum(size for _, size in heads) != reader.left:
        raise ValueError("its streams do not add up")
    return records, ((encoding, reader.take(size)) for encoding, size in heads)


def _number_of_fields(reader: PayloadReader) -> int:
    count = reader.byte()
    if not 1 <= count <= MAX_FIELDS:
        raise ValueError("its number of fields is not valid")
    return count


def _read_field(reader: PayloadReader, before: Sequence[Field], total: int) -> Field:
    bits, size = reader.byte(), reader.varint(2 * total)
    field = Field(bits, size, reader.byte() if bits else 0)
    if bits not in (_BYTES, 4, 8) or not field.nbytes or size * (bits or 8) % 8:
        raise ValueError("one of its fields is not valid")
    if field.scale and (
        field.scale > len(before) or before[field.scale - 1] != Field(_BYTES, _SCALE_BYTES)
    ):
        raise ValueError("one of its scales is not valid")
    return field
