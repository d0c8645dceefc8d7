"""Calculate chunks of floats from others, by docs/format.md alone. Part of `reader`."""

import math
import struct
from typing import NamedTuple


class Floats(NamedTuple):
    """A kind of floats."""

    width: int
    mantissa: int
    bias: int
    largest: int  # bits of the largest number
    infinity: int | None
    nan: int

    def value(self, bits: int) -> float:
        sign, bits = bits >> (8 * self.width - 1), bits & ((1 << (8 * self.width - 1)) - 1)
        if bits > self.largest:
            value = math.inf if bits == self.infinity else math.nan
        else:
            exponent, fraction = bits >> self.mantissa, bits & ((1 << self.mantissa) - 1)
            fraction += (1 << self.mantissa) if exponent else 0
            value = math.ldexp(fraction, max(exponent, 1) - self.bias - self.mantissa)
        return -value if sign else value

    def bits(self, value: float, toward_zero: bool) -> int:
        if math.isnan(value):
            return self.nan
        sign = (math.copysign(1, value) < 0) << (8 * self.width - 1)
        size, beyond = abs(value), self.largest if self.infinity is None else self.infinity
        if math.isinf(size):
            return sign | beyond
        least = 1 - self.bias
        exponent = max(math.frexp(size)[1] - 1, least) if size else least
        steps = math.ldexp(size, self.mantissa - exponent)  # exact: a power of two
        count = math.floor(steps) if toward_zero else round(steps)  # `round` goes to the even one
        # A count of 2 ** (mantissa + 1) carries into the exponent, as it should.
        bits = ((exponent + self.bias - 1) << self.mantissa) + count
        if bits > self.largest:
            return sign | (self.largest if toward_zero else beyond)
        return sign | bits


FLOATS = {
    4: Floats(1, 2, 15, 0x7B, 0x7C, 0x7F),
    5: Floats(1, 3, 7, 0x7E, None, 0x7F),
    6: Floats(2, 10, 15, 0x7BFF, 0x7C00, 0x7E00),
    7: Floats(2, 7, 127, 0x7F7F, 0x7F80, 0x7FC0),
    8: Floats(4, 23, 127, 0x7F7FFFFF, 0x7F800000, 0x7FC00000),
}
F32 = FLOATS[8]


def f32(value: float) -> float:
    """Round to F32. Products and sums of two F32 are exact enough as Python's floats for that."""
    return F32.value(F32.bits(value, False))


class Rule(NamedTuple):
    """What is calculated."""

    source: Floats
    target: Floats
    toward_zero: bool
    weights: tuple[float, ...]

    def operand_bytes(self, total: int) -> int:
        return (len(self.weights) or 1) * (total // self.target.width) * self.source.width

    def apply(self, operands: bytes) -> bytes:
        width = self.source.width
        elements = [
            self.source.value(int.from_bytes(operands[at : at + width], "little"))
            for at in range(0, len(operands), width)
        ]
        if self.weights:
            first, second = self.weights
            half = len(elements) // 2
            pairs = zip(elements[:half], elements[half:], strict=True)
            elements = [f32(f32(a * first) + f32(b * second)) for a, b in pairs]
        return b"".join(
            self.target.bits(value, self.toward_zero).to_bytes(self.target.width, "little")
            for value in elements
        )


def read_rule(source: int, target: int, flags: int, weights: bytes) -> Rule:
    """Return a rule, given its bytes; ValueError or LookupError if it is malformed."""
    numbers = struct.unpack("<2f", weights) if flags & 2 else ()
    if flags > 3 or not all(map(math.isfinite, numbers)):
        raise ValueError("a rule that calculates otherwise")
    return Rule(FLOATS[source], FLOATS[target], bool(flags & 1), numbers)
