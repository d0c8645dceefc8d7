"""The fields of records as streams, and the numbers in them as elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casweights.kernels.reference.bits import require_writable

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

_WRONG_NUMBERS = "numbers of 4 or 8 bits need as many elements"


def take_field(records: Buffer, size: int, offset: int, stream: Buffer, /) -> None:
    """Copy a field of all records to a stream.

    Args:
        records: The records, end to end.
        size: Bytes of a record.
        offset: Bytes of a record before the field.
        stream: Receives the field of each record.

    Raises:
        TypeError: `stream` is read-only.
        ValueError: The lengths do not fit each other.
    """
    require_writable(stream)
    column, field = _columns(records, size, offset, stream)
    field[:] = column


def put_field(stream: Buffer, size: int, offset: int, records: Buffer, /) -> None:
    """Copy a stream to the field of all records: the inverse of `take_field`."""
    require_writable(records)
    column, field = _columns(records, size, offset, stream)
    column[:] = field


def _columns(
    records: Buffer, size: int, offset: int, stream: Buffer
) -> tuple[np.ndarray, np.ndarray]:
    """Return views of a field with a row for each record, in the records and in the stream."""
    rows, field = (np.frombuffer(data, np.uint8) for data in (records, stream))
    count = len(rows) // size if size > 0 else 0
    own = len(field) // count if count else 0
    is_within = size > 0 and 0 <= offset <= size and own <= size - offset
    if not is_within or count * size != len(rows) or count * own != len(field):
        raise ValueError("a field must lie within its records, and fill its stream")
    return rows.reshape(count, size)[:, offset : offset + own], field.reshape(count, own)


def count_values(records: Buffer, size: int, /) -> bytes:
    """Return how many values each byte of records has, as u16.

    Args:
        records: The records, end to end, one or more.
        size: Bytes of a record.

    Raises:
        ValueError: There is no record, or an incomplete one.
    """
    data = np.frombuffer(records, np.uint8)
    if size <= 0 or not len(data) or len(data) % size:
        raise ValueError("values are counted of one record or more")
    seen = np.zeros((size, 256), np.bool_)
    seen[np.arange(size), data.reshape(-1, size)] = True
    values: np.ndarray = np.count_nonzero(seen, axis=1)
    return values.astype("<u2").tobytes()


def unpack_numbers(stored: Buffer, bits: int, numbers: Buffer, /) -> None:
    """Set numbers, from 0 on and a byte each, to those that bytes store.

    Args:
        stored: Numbers as a chunk has them.
        bits: Bits of a number, 4 or 8.
        numbers: Receives the numbers.

    Raises:
        TypeError: `numbers` is read-only.
        ValueError: The lengths do not fit each other, or numbers have other bits.
    """
    require_writable(numbers)
    data, out = (np.frombuffer(one, np.uint8) for one in (stored, numbers))
    if bits not in (4, 8) or len(out) != len(data) * 8 // bits:
        raise ValueError(_WRONG_NUMBERS)
    out[:] = _numbers(data, bits)


def number_elements(stored: Buffer, bits: int, known: Buffer, elements: Buffer, /) -> None:
    """Set the elements of numbers.

    Args:
        stored: Numbers as a chunk has them.
        bits: Bits of a number, 4 or 8.
        known: The elements that are expected; nothing if each number is its own context.
        elements: Receives an element of `ElementKind.NUMBER` for each number.

    Raises:
        TypeError: `elements` is read-only.
        ValueError: The lengths do not fit each other, or numbers have other bits.
    """
    require_writable(elements)
    sizes = [len(memoryview(data)) for data in (stored, known, elements)]
    if bits not in (4, 8) or sizes[2] != 16 // bits * sizes[0] or sizes[1] not in (0, sizes[2]):
        raise ValueError(_WRONG_NUMBERS)
    numbers = _numbers(np.frombuffer(stored, np.uint8), bits).astype("<u2")
    upper = np.frombuffer(known, "<u2") & 0xFF00 if sizes[1] else numbers >> (bits - 4) << 8
    np.bitwise_or(upper, numbers, out=np.frombuffer(elements, "<u2"))


def pack_numbers(elements: Buffer, known: Buffer, bits: int, stored: Buffer, /) -> None:
    """Store the numbers of elements: the inverse of `number_elements`.

    Raises:
        TypeError: `stored` is read-only.
        ValueError: An element differs from the expected one in more than its number, the lengths
            do not fit each other, or numbers have other bits.
    """
    require_writable(stored)
    sizes = [len(memoryview(data)) for data in (elements, known, stored)]
    if bits not in (4, 8) or sizes[0] != 16 // bits * sizes[2] or sizes[1] != sizes[0]:
        raise ValueError(_WRONG_NUMBERS)
    found, expected = (np.frombuffer(data, "<u2") for data in (elements, known))
    if ((found ^ expected) >> bits).any():
        raise ValueError("one of its numbers is out of range")
    numbers, out = found.astype(np.uint8), np.frombuffer(stored, np.uint8)
    out[:] = numbers ^ np.uint8(128) if bits == 8 else numbers[::2] & 15 | numbers[1::2] << 4


def _numbers(stored: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return stored ^ np.uint8(128)
    halves: np.ndarray = np.stack([stored & 15, stored >> 4], axis=1).reshape(-1)
    return halves
