"""Code the steps of changed elements with adaptive probabilities.

An optimizer moves all elements by similar absolute amounts. The absolute scale of a step is the
exponent of the base plus the logarithm of the step's size in units of the base's last place, so the
probabilities depend on this sum.
"""

from __future__ import annotations

from casweights.kernels.reference.range_coder import (
    Chance,
    RangeDecoder,
    RangeEncoder,
)

_SCALES = 256 + 64


class Sizes:
    """Probabilities of the bits of sizes, by absolute scale; each step adapts them.

    Attributes:
        more: The bits that say whether the size is at least twice as large: the first such bit of
            a size, and the later ones.
        top: The bit below the highest one.
    """

    def __init__(self) -> None:
        self.more = [[Chance() for _ in range(_SCALES)] for _ in range(2)]
        self.top = [Chance() for _ in range(_SCALES)]

    def put(self, coder: RangeEncoder, exponent: int, difference: int) -> None:
        """Code a difference in zigzag, which must not be 0."""
        size = (difference + 1) // 2
        log = size.bit_length() - 1
        for n in range(log + 1):
            coder.put(self.more[n > 0][exponent + n], n < log)
        if log:
            coder.put(self.top[exponent + log], size >> (log - 1) & 1)
            coder.put_even(size & ((1 << (log - 1)) - 1), log - 1)
        coder.put_even(difference & 1, 1)

    def get(self, coder: RangeDecoder, exponent: int, width: int) -> int:
        """Decode the difference of an element of `width` bits; the inverse of `put`."""
        log = self._get_log(coder, exponent, width)
        size = 1
        if log:
            size = 2 | coder.get(self.top[exponent + log])
            size = size << (log - 1) | coder.get_even(log - 1)
        difference = 2 * size - coder.get_even(1)
        if difference >> width:
            raise ValueError("one of its changes is out of range")
        return difference

    def _get_log(self, coder: RangeDecoder, exponent: int, width: int) -> int:
        for log in range(width):
            if not coder.get(self.more[log > 0][exponent + log]):
                return log
        raise ValueError("one of its changes is out of range")
