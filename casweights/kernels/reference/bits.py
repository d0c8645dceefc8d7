"""Read and write the bytes and bits of payloads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer


def require_writable(data: Buffer) -> None:
    """Raise TypeError for a read-only buffer, as the compiled kernels do."""
    if memoryview(data).readonly:
        raise TypeError("the result needs a read-write bytes-like object")


def varint(value: int) -> bytes:
    """Encode a number as LEB128: 7 bits a byte, the lowest first; bit 7 says that more follow."""
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class PayloadReader:
    """Reads a payload from front to back; methods raise ValueError if it ends too early."""

    def __init__(self, payload: Buffer) -> None:
        self._payload = memoryview(payload).cast("B")
        self._at = 0

    @property
    def left(self) -> int:
        """Number of unread bytes."""
        return len(self._payload) - self._at

    def take(self, size: int) -> memoryview:
        """Read `size` bytes."""
        if size > self.left:
            raise ValueError("it is too short")
        self._at += size
        return self._payload[self._at - size : self._at]

    def byte(self) -> int:
        """Read one byte."""
        return self.take(1)[0]

    def varint(self, limit: int) -> int:
        """Read a number of at most 9 bytes and at most `limit`."""
        value, shift, byte = 0, 0, 128
        while byte >= 128 and shift < 63:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
        if byte >= 128 or value > limit:
            raise ValueError("one of its numbers is too large")
        return value


class BitReader:
    """Reads bits in order, beginning with the lowest bit of the first byte."""

    def __init__(self, data: Buffer) -> None:
        self._data = bytes(data)
        self._at = 0

    @property
    def left(self) -> int:
        """Number of unread bits."""
        return 8 * len(self._data) - self._at

    def zeros(self) -> int:
        """Read zeros up to and including the next 1 bit, and return the number of zeros."""
        start = self._at
        while self.left > 0:
            window = self._window()
            if window:
                self._at += (window & -window).bit_length()
                return self._at - start - 1
            self._at = (self._at & ~7) + 64
        raise ValueError("it is too short")

    def bits(self, count: int) -> int:
        """Read `count` bits, at most 57, as a number."""
        if count > self.left:
            raise ValueError("it is too short")
        value = self._window() & ((1 << count) - 1)
        self._at += count
        return value

    def is_at_end(self) -> bool:
        """Return whether only the zeros that fill the last byte are left."""
        return self.left < 8 and not self._window()

    def _window(self) -> int:
        """Return at least 57 of the next bits; bits past the end are 0."""
        start = self._at >> 3
        return int.from_bytes(self._data[start : start + 8], "little") >> (self._at & 7)


def pack_fields(values: np.ndarray, starts: np.ndarray, size: int) -> bytes:
    """Write numbers at given positions in a row of bits; all other bits are 0.

    Args:
        values: The numbers, as uint64.
        starts: For each number, the bit at which it begins. The positions ascend, and no number
            overlaps the next one.
        size: Bytes of the result.
    """
    words = np.zeros(size // 8 + 2, "<u8")
    if len(values):
        word, shift = _positions(starts)
        first = np.flatnonzero(np.diff(word, prepend=-1))
        words[word[first]] = np.bitwise_or.reduceat(values << shift, first)
        beyond = values >> 1 >> (63 - shift)  # two shifts, since a shift by 64 is not defined
        crossing = np.flatnonzero(beyond)
        words[word[crossing] + 1] |= beyond[crossing]
    return words.tobytes()[:size]


def unpack_fields(data: Buffer, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Read numbers of less than 64 bits each from a row of bits, as uint64.

    Args:
        data: The row of bits.
        starts: For each number, the bit at which it begins.
        sizes: Bits of each number.
    """
    words = np.frombuffer(bytes(data) + bytes(16 - len(data) % 8), "<u8")
    word, shift = _positions(starts)
    values: np.ndarray = words[word] >> shift | words[word + 1] << 1 << (63 - shift)
    values &= (np.uint64(1) << sizes.astype(np.uint64)) - np.uint64(1)
    return values


def _positions(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 64-bit word that contains each bit, and the bit's position in it."""
    return starts >> 6, (starts & 63).astype(np.uint64)
