"""The `records` encoding: a chunk of records, whose fields are differences by themselves.

Formats of quantized weights store blocks: a scale, and some small numbers that it multiplies. As
bytes these are a mixture; as two streams, each has chances of its own. Where the scale of a block
changes, most of its numbers do, and by how much follows from the two scales.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.kernels import expect
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
_CONTEXT_BITS = 4  # of a number without a scale


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
        rest, rows = self._places(np.frombuffer(data, np.uint8))
        columns = [np.concatenate([row[:, own] for row in rows]) for own in self._columns()]
        return [np.concatenate(rest), *(column.reshape(-1) for column in columns)]

    def put_together(self, streams: Sequence[np.ndarray], out: memoryview) -> None:
        """Put the bytes that `take_apart` returned into `out`."""
        rest, rows = self._places(np.frombuffer(out, np.uint8))
        at = 0
        for piece in rest:
            piece[:] = streams[0][at : at + len(piece)]
            at += len(piece)
        at = 0
        for row in rows:
            for own, stream in zip(self._columns(), streams[1:], strict=True):
                row[:, own] = stream.reshape(-1, own.stop - own.start)[at : at + len(row)]
            at += len(row)

    def _places(self, data: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return views of the bytes in no record, and of each run with a row for each record."""
        rest, rows, at = [], [], 0
        for skipped, records in self.runs:
            start, at = at + skipped, at + skipped + records * self.nbytes
            rest.append(data[start - skipped : start])
            rows.append(data[start:at].reshape(records, self.nbytes))
        return [*rest, data[at:]], rows

    def _columns(self) -> list[slice]:
        ends = accumulate(field.nbytes for field in self.fields)
        return [
            slice(end - field.nbytes, end) for field, end in zip(self.fields, ends, strict=True)
        ]


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
    numbers = _unpacked(np.frombuffer(old, np.uint8), field.bits)
    if scales is None:
        context = (numbers >> (field.bits - _CONTEXT_BITS)).astype("<u2")
        known: np.ndarray = context << 8 | numbers
        return known
    out = np.empty(len(numbers), "<u2")
    expect(*scales, numbers.data, field.bits, out.data.cast("B"))
    return out


def elements(field: Field, new: Buffer, base: np.ndarray) -> np.ndarray:
    """Return the elements of a field's numbers, given those that are expected."""
    numbers = _unpacked(np.frombuffer(new, np.uint8), field.bits)
    known: np.ndarray = base & np.uint16(0xFF00) | numbers
    return known


def packed(field: Field, found: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return the bytes of a field's numbers; the inverse of `elements`.

    Raises:
        ValueError: An element differs from the expected one in more than its number.
    """
    if ((found ^ base) >> field.bits).any():
        raise ValueError("one of its numbers is out of range")
    numbers = found.astype(np.uint8)
    if field.bits == 8:
        return numbers ^ np.uint8(128)
    pairs = numbers.reshape(-1, 2)
    both: np.ndarray = pairs[:, 0] | pairs[:, 1] << 4
    return both


def _unpacked(data: np.ndarray, bits: int) -> np.ndarray:
    """Return numbers as those from 0 on."""
    if bits == 8:
        return data ^ np.uint8(128)
    halves = np.empty((len(data), 2), np.uint8)
    np.bitwise_and(data, 15, out=halves[:, 0])
    np.right_shift(data, 4, out=halves[:, 1])
    return halves.reshape(-1)


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
