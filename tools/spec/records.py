"""Decode differences of records, by docs/format.md alone. Part of `reader`."""

import struct
from typing import NamedTuple

from tools.spec.differences import Bytes, decode_dense, decode_sparse, need

DECODERS = {3: decode_dense, 4: decode_sparse}


class Field(NamedTuple):
    bits: int
    size: int
    scale: int

    @property
    def nbytes(self) -> int:
        return self.size * (self.bits or 8) // 8


def decode_records(stored: bytes, base: bytes) -> bytes:
    payload = Bytes(stored)
    fields = read_fields(payload)
    size = sum(field.nbytes for field in fields)
    places, rest = read_places(payload, size, base)
    old = [b"".join(base[start:end] for start, end in rest)]
    offset = 0
    for field in fields:
        ends = [(place + offset, place + offset + field.nbytes) for place in places]
        old.append(b"".join(base[start:end] for start, end in ends))
        offset += field.nbytes
    heads = [(payload.byte(), payload.varint()) for _ in old]
    need(all(encoding in DECODERS for encoding, _ in heads), "an unknown encoding of a stream")
    streams = [payload.take(count) for _, count in heads]
    need(payload.left == 0, "a payload that is longer than its streams")
    new: list[bytes] = []
    for number, ((encoding, _), stream) in enumerate(zip(heads, streams, strict=True)):
        before, decode = old[number], DECODERS[encoding]
        field = fields[number - 1] if number else Field(0, 0, 0)
        if not field.bits:
            new.append(decode(stream, before))
            continue
        scales = [pairs(data[field.scale]) for data in (old, new)] if field.scale else []
        elements = expected(field, before, *scales)
        decoded = decode(stream, struct.pack(f"<{len(elements)}H", *elements))
        found = struct.unpack(f"<{len(elements)}H", decoded)
        upper = [[element >> field.bits for element in both] for both in (elements, found)]
        need(upper[0] == upper[1], "an element that is no number")
        new.append(packed(field, [element % (1 << field.bits) for element in found]))
    return put(len(base), fields, places, rest, new)


def read_fields(payload: Bytes) -> list[Field]:
    count = payload.byte()
    need(1 <= count <= 8, "a wrong number of fields")
    fields: list[Field] = []
    for _ in range(count):
        bits, size = payload.byte(), payload.varint()
        field = Field(bits, size, payload.byte() if bits else 0)
        need(bits in (0, 4, 8) and size > 0 and size * (bits or 8) % 8 == 0, "a malformed field")
        if field.scale:
            need(field.scale <= len(fields), "a scale that does not precede its numbers")
            need(fields[field.scale - 1] == Field(0, 2, 0), "a scale that is no F16")
        fields.append(field)
    return fields


def read_places(payload: Bytes, size: int, base: bytes) -> tuple[list[int], list[tuple[int, int]]]:
    """Return where records begin, and the ranges of the other bytes."""
    places: list[int] = []
    rest = []
    at = 0
    runs = payload.varint()
    need(1 <= runs <= 65_536, "a wrong number of runs")
    for _ in range(runs):
        skipped, records = payload.varint(), payload.varint()
        need(records > 0, "a run without records")
        rest.append((at, at + skipped))
        at += skipped
        need(at + records * size <= len(base), "records that exceed the chunk")
        places += range(at, at + records * size, size)
        at += records * size
    return places, [*rest, (at, len(base))]


def pairs(data: bytes) -> list[bytes]:
    return [data[n : n + 2] for n in range(0, len(data), 2)]


def expected(field: Field, old: bytes, *scales: list[bytes]) -> list[int]:
    """Return the elements that numbers are expected to be, given the scales before and after."""
    if not scales:
        return [256 * (u >> (field.bits - 4)) + u for u in unpacked(field, old)]
    elements = []
    for n, number in enumerate(unpacked(field, old)):
        s, t = (int.from_bytes(its[n // field.size], "little") for its in scales)
        elements.append(expected_element(number, 1 << (field.bits - 1), s, t))
    return elements


def expected_element(u: int, zero: int, s: int, t: int) -> int:
    if s == t:
        return 256 * (s % 32_768 >> 9) + u
    before, after = magnitude(s), magnitude(t)
    ratio = min(1 << 24, 65_536 * before // after) if after else 0
    q = zero - u if (s ^ t) >> 15 else u - zero
    x = abs(q) * ratio
    y = (x + 32_768) >> 16
    distance = abs(x - 65_536 * y)
    number = zero - min(y, zero) if q < 0 else zero + min(y, zero - 1)
    direction = 32_768 if (q < 0) != (x < 65_536 * y) else 0
    return number + 256 * (64 + (distance >> 12)) + direction


def magnitude(scale: int) -> int:
    exponent, mantissa = scale >> 10 & 31, scale & 1023
    return (1024 + mantissa) << (exponent - 1) if exponent else mantissa


def unpacked(field: Field, data: bytes) -> list[int]:
    if field.bits == 8:
        return [byte ^ 128 for byte in data]
    return [half for byte in data for half in (byte & 15, byte >> 4)]


def packed(field: Field, numbers: list[int]) -> bytes:
    if field.bits == 8:
        return bytes(number ^ 128 for number in numbers)
    halves = zip(numbers[::2], numbers[1::2], strict=True)
    return bytes(low | high << 4 for low, high in halves)


def put(
    size: int,
    fields: list[Field],
    places: list[int],
    rest: list[tuple[int, int]],
    streams: list[bytes],
) -> bytes:
    """Return the chunk whose streams these are."""
    out = bytearray(size)
    at = 0
    for start, end in rest:
        out[start:end] = streams[0][at : at + end - start]
        at += end - start
    for n, place in enumerate(places):
        for field, stream in zip(fields, streams[1:], strict=True):
            out[place : place + field.nbytes] = stream[n * field.nbytes : (n + 1) * field.nbytes]
            place += field.nbytes
    return bytes(out)
