"""Predict the elements of a matrix by factors, by docs/format.md alone. Part of `reader`."""

import math
from typing import NamedTuple

from tools.spec.arithmetic import FLOATS, f32


class Factors(NamedTuple):
    """What a matrix gains: the product of `left` and `right`, times a power of two."""

    left: list[list[int]]  # a list for each row of the matrix
    right: list[list[int]]  # a list for each factor, with a number for each column
    exponent: int
    start: int

    def predict(self, base: bytes, kind: int) -> bytes:
        """Return the elements that the factors predict from those of the base."""
        floats, columns, out = FLOATS[kind], len(self.right[0]), b""
        for n in range(len(base) // floats.width):
            row, column = divmod(self.start + n, columns)
            total = sum(a * b[column] for a, b in zip(self.left[row], self.right, strict=True))
            product = f32(math.ldexp(total, self.exponent))
            at = n * floats.width
            bits = int.from_bytes(base[at : at + floats.width], "little")
            predicted = f32(floats.value(bits) + product)
            out += floats.bits(predicted, False).to_bytes(floats.width, "little")
        return out


def read_factors(
    plain: bytes, rows: int, columns: int, rank: int, exponent: int, start: int
) -> Factors:
    """Return factors, given their zigzags as 16-bit numbers."""
    words = [int.from_bytes(plain[at : at + 2], "little") for at in range(0, len(plain), 2)]
    numbers = [word >> 1 if word % 2 == 0 else -(word >> 1) - 1 for word in words]
    left = [numbers[row * rank : (row + 1) * rank] for row in range(rows)]
    rest = numbers[rows * rank :]
    right = [rest[k * columns : (k + 1) * columns] for k in range(rank)]
    return Factors(left, right, exponent, start)
