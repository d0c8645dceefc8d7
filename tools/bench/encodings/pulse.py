"""The third patch format of PULSE: ranks within classes of exponents, and changes of one byte.

It is written from its publication, in the same lean container as the other patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import numpy as np

from tools.bench.encodings.entropy import exponent
from tools.bench.encodings.patches import apply, changes
from tools.bench.encodings.states import unzstd, zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.bench.encodings.states import Array, Indices, State

VALUE_ESCAPE = 0xFF
RICE_ESCAPE = 32  # ones, in place of a large quotient, which is stored separately
RICE_BITS = 31


def pulse_v3_encode(base: State, new: State) -> bytes:
    """Encode ranks within exponent classes in Rice codes, changes in bytes; zstd-1 over both."""
    header, body = [], []
    for name, indices in changes(base, new):
        old = base[name]
        places = _encode_classes(old, indices)
        values = _encode_steps(old[indices], new[name][indices])
        header.append((name, len(indices), len(places), len(values)))
        body += [places, values]
    return zstd(msgpack.packb((header, b"".join(body))), 1)


def pulse_v3_decode(base: State, payload: bytes) -> State:
    header, body = msgpack.unpackb(unzstd(payload))

    def decoded() -> Iterator[tuple[str, Indices, Array]]:
        start = 0
        for name, count, places, values in header:
            old, middle, end = base[name], start + places, start + places + values
            indices = _decode_classes(old, body[start:middle])
            yield name, indices, _decode_steps(old[indices], body[middle:end], count)
            start = end

    return apply(base, decoded())


def _encode_classes(old: Array, indices: Indices) -> bytes:
    """Encode, for each exponent, a record and the ranks of the changed elements.

    If fewer elements stay the same than change, the ranks are those of the elements that stay. The
    record has 10 bytes: the exponent, which of the two it is, the number of ranks, and their size.
    """
    exponents = exponent(old)
    changed = np.zeros(len(old), bool)
    changed[indices] = True
    records, blocks = [], []
    for value in np.unique(exponents[indices]):
        flags = changed[exponents == value]
        rest = 2 * int(flags.sum()) > len(flags)
        ranks = np.flatnonzero(flags != rest)
        block = _rice(ranks)
        records.append(bytes([value, rest]) + np.array([len(ranks), len(block)], "<u4").tobytes())
        blocks.append(block)
    return np.array([len(records)], "<u2").tobytes() + b"".join([*records, *blocks])


def _decode_classes(old: Array, data: bytes) -> Indices:
    exponents = exponent(old)
    changed = np.zeros(len(old), bool)
    classes = int(np.frombuffer(data, "<u2", 1)[0])
    start = 2 + 10 * classes
    for n in range(classes):
        value, rest = data[2 + 10 * n], data[3 + 10 * n]
        count, length = (int(x) for x in np.frombuffer(data, "<u4", 2, 4 + 10 * n))
        members = np.flatnonzero(exponents == value)
        flags = np.full(len(members), rest, bool)
        flags[_unrice(data[start : start + length], count)] = not rest
        changed[members] = flags
        start += length
    return np.flatnonzero(changed)


def _rice(ranks: Indices) -> bytes:
    """Encode gaps of ascending numbers: k, unary quotients, k-bit remainders, large quotients."""
    if not len(ranks):
        return b""
    gaps = np.diff(ranks, prepend=-1) - 1
    k = min(range(RICE_BITS), key=lambda k: _rice_cost(gaps, k))
    quotients = gaps >> k
    ends = np.cumsum(np.minimum(quotients, RICE_ESCAPE) + 1) - 1
    unary = np.ones(-(-int(ends[-1] + 1) // 8) * 8, bool)
    unary[ends] = False
    remainders = (gaps[:, None] >> np.arange(k)[::-1] & 1).astype(bool)
    ones = np.packbits(unary).tobytes()
    large = quotients[quotients >= RICE_ESCAPE].astype("<u4").tobytes()
    size = np.array([len(ones)], "<u4").tobytes()
    return bytes([k]) + size + ones + np.packbits(remainders).tobytes() + large


def _rice_cost(gaps: Indices, k: int) -> int:
    quotients = gaps >> k
    escapes = int((quotients >= RICE_ESCAPE).sum())
    return int(np.minimum(quotients, RICE_ESCAPE).sum()) + len(gaps) * (1 + k) + 32 * escapes


def _unrice(data: bytes, count: int) -> Indices:
    if not count:
        return np.zeros(0, np.int64)
    k, size = data[0], int(np.frombuffer(data, "<u4", 1, 1)[0])
    unary = np.unpackbits(np.frombuffer(data, np.uint8, size, 5))
    quotients = np.diff(np.flatnonzero(unary == 0)[:count], prepend=-1) - 1
    middle = 5 + size
    end = middle + -(-count * k // 8)
    large = quotients == RICE_ESCAPE
    quotients[large] = np.frombuffer(data, "<u4", int(large.sum()), end)
    bits = np.unpackbits(np.frombuffer(data[middle:end], np.uint8), count=count * k)
    remainders = bits.reshape(count, k).astype(np.int64) @ (1 << np.arange(k)[::-1])
    result: Indices = np.cumsum((quotients << k) + remainders + 1) - 1
    return result


def _encode_steps(old: Array, new: Array) -> bytes:
    """Encode zigzagged differences of bit patterns in a byte each, larger ones separately."""
    difference = (new - old).view(np.int16)
    steps = (difference << 1 ^ difference >> 15).view(np.uint16)
    short = np.minimum(steps, VALUE_ESCAPE).astype(np.uint8)
    return short.tobytes() + steps[steps >= VALUE_ESCAPE].tobytes()


def _decode_steps(old: Array, data: bytes, count: int) -> Array:
    steps = np.frombuffer(data, np.uint8, count).astype(np.uint16)
    steps[steps == VALUE_ESCAPE] = np.frombuffer(data[count:], np.uint16)
    result: Array = old + (steps >> 1 ^ -(steps & 1))
    return result
