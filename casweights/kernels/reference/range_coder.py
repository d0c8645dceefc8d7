"""An adaptive binary range coder: that of LZMA, with probabilities that adapt fast at first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.system.buffers import Buffer

_CERTAIN = 62  # bits over which a probability is averaged, at most
_RATES = [655_360 // (10 * seen + 16) for seen in range(_CERTAIN + 1)]
_TOP = 1 << 24
_FULL = 0xFFFFFFFF


class Chance:
    """The probability of a 0, in 65,536ths, and the number of bits that it was learnt from."""

    __slots__ = ("_seen", "_zero")

    def __init__(self) -> None:
        self._zero = 1 << 15
        self._seen = 0

    def bound(self, span: int) -> int:
        """Return the part of a range that represents a 0."""
        return (span >> 12) * (self._zero >> 4)

    def learn(self, bit: int) -> None:
        """Move the probability towards a bit that was coded."""
        rate = _RATES[self._seen]
        if bit:
            self._zero -= self._zero * rate >> 16
        else:
            self._zero += (65_536 - self._zero) * rate >> 16
        if self._seen < _CERTAIN:
            self._seen += 1


class RangeEncoder:
    """Codes bits to bytes."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._low = 0
        self._range = _FULL

    def put(self, chance: Chance, bit: int) -> None:
        """Code a bit, and let its probability learn."""
        bound = chance.bound(self._range)
        if bit:
            self._low += bound
            self._range -= bound
        else:
            self._range = bound
        chance.learn(bit)
        self._normalize()

    def put_even(self, bits: int, count: int) -> None:
        """Code the lowest `count` bits of a number, the highest first, as equally likely 0 or 1."""
        for n in reversed(range(count)):
            self._range >>= 1
            self._low += self._range * (bits >> n & 1)
            self._normalize()

    def finish(self) -> bytes:
        """Return the fewest bytes that identify the bits; a decoder reads zeros past their end."""
        end = self._low + self._range - 1
        steps = (1 << shift for shift in (24, 16, 8, 0))
        rounded = (-(-self._low // step) * step for step in steps)
        self._low = next(value for value in rounded if value <= end)
        for _ in range(4):
            self._shift()
        return bytes(self._out.rstrip(b"\0"))

    def _normalize(self) -> None:
        while self._range < _TOP:
            self._shift()
            self._range <<= 8

    def _shift(self) -> None:
        if self._low >> 32:
            self._carry()
        self._out.append(self._low >> 24 & 255)
        self._low = (self._low & 0xFFFFFF) << 8

    def _carry(self) -> None:
        at = len(self._out) - 1
        while self._out[at] == 255:
            self._out[at] = 0
            at -= 1
        self._out[at] += 1


class RangeDecoder:
    """Decodes the bits that a `RangeEncoder` coded."""

    def __init__(self, data: Buffer) -> None:
        self._bytes = iter(bytes(data))
        self._code = 0
        self._range = _FULL
        for _ in range(4):
            self._shift()

    def get(self, chance: Chance) -> int:
        """Decode a bit, and let its probability learn."""
        bound = chance.bound(self._range)
        bit = int(self._code >= bound)
        if bit:
            self._code -= bound
            self._range -= bound
        else:
            self._range = bound
        chance.learn(bit)
        self._normalize()
        return bit

    def get_even(self, count: int) -> int:
        """Decode `count` equally likely bits, the highest first, as a number."""
        bits = 0
        for _ in range(count):
            self._range >>= 1
            bit = int(self._code >= self._range)
            self._code -= self._range * bit
            bits = bits << 1 | bit
            self._normalize()
        return bits

    def is_at_end(self) -> bool:
        """Return whether all bytes were read."""
        return next(self._bytes, None) is None

    def _normalize(self) -> None:
        while self._range < _TOP:
            self._range <<= 8
            self._shift()

    def _shift(self) -> None:
        # A forged code can exceed the range; cut to 32 bits, all decoders read the same bits.
        self._code = (self._code << 8 | next(self._bytes, 0)) & _FULL
