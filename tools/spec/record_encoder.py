"""Encode differences of records, by docs/format.md alone. Part of `writer`."""

import struct

from tools.spec import encoders
from tools.spec.records import Field, expected, pairs, unpacked

FIELDS = (Field(4, 6, 0), Field(0, 2, 0), Field(8, 3, 2), Field(0, 1, 0), Field(4, 4, 2))
SKIPPED = 5


def encode(raw: bytes, base: bytes) -> bytes | None:
    """A chunk as records of made-up fields, in two runs; None if it is too short for them."""
    size = sum(field.nbytes for field in FIELDS)
    count = (len(raw) - 2 * SKIPPED) // size
    if count < 2:
        return None
    runs = [(SKIPPED, count // 2), (SKIPPED, count - count // 2)]
    payload = bytes([len(FIELDS)])
    for field in FIELDS:
        payload += bytes([field.bits]) + encoders.varint(field.size)
        payload += bytes([field.scale]) if field.bits else b""
    payload += encoders.varint(len(runs))
    payload += b"".join(encoders.varint(number) for run in runs for number in run)
    old, new = _streams(base, runs, size), _streams(raw, runs, size)
    heads = bodies = b""
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        field = FIELDS[number - 1] if number else Field(0, 0, 0)
        kind = encoders.KINDS[0]
        if field.bits:
            kind = encoders.KINDS[10]
            scales = [pairs(data[field.scale]) for data in (old, new)] if field.scale else []
            elements = expected(field, before, *scales)
            numbers = zip(elements, unpacked(field, after), strict=True)
            before = _packed(elements)
            after = _packed([(e >> 8 << 8) + u for e, u in numbers])
        starts = sorted(set(encoders.exponents_of(before, kind)) - {0})[:7]
        code = (encoders.DENSE, encoders.SPARSE)[number % 2]
        if code == encoders.SPARSE:
            stored = encoders.sparse(after, before, kind, starts)
        else:
            stored = encoders.dense(after, before, kind, starts, _models(before, kind))
        heads += bytes([code]) + encoders.varint(len(stored))
        bodies += stored
    return payload + heads + bodies


def _streams(data: bytes, runs: list[tuple[int, int]], size: int) -> list[bytes]:
    """The bytes in no record, and then those of each field."""
    rest, fields = b"", [b""] * len(FIELDS)
    at = 0
    for skipped, records in runs:
        rest += data[at : at + skipped]
        at += skipped
        for _ in range(records):
            for n, field in enumerate(FIELDS):
                fields[n] += data[at : at + field.nbytes]
                at += field.nbytes
    return [rest + data[at:], *fields]


def _models(data: bytes, kind: encoders.Kind) -> encoders.Models:
    blocks = -(-8 * len(data) // kind.bits // 128)
    return encoders.Models([n % 3 for n in range(blocks)], ())


def _packed(elements: list[int]) -> bytes:
    return struct.pack(f"<{len(elements)}H", *elements)
