"""The rule of derived frames that calculates: casts of floats, and sums of two with weights."""

from __future__ import annotations

import struct
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.kernels.kinds import ElementKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.format.dtypes import DType
    from casweights.kernels.reference.bits import PayloadReader
    from casweights.system.buffers import Buffer

_TOWARD_ZERO, _WEIGHTED = 1, 2  # bits of the flags
_WEIGHTS = struct.Struct("<2f")
_BLOCK = 1 << 16  # elements that are calculated at a time
_FLOATS = {
    "F8_E5M2": ElementKind.E5M2,
    "F8_E4M3": ElementKind.E4M3,
    "F16": ElementKind.FLOAT_16,
    "BF16": ElementKind.BFLOAT_16,
    "F32": ElementKind.FLOAT_32,
}
KINDS = frozenset(_FLOATS.values())


def is_castable(dtype: DType) -> bool:
    """Whether chunks of a dtype can be calculated, and be operands."""
    return dtype.code in _FLOATS


class Arithmetic(NamedTuple):
    """How a chunk of floats is calculated from others.

    All operands are widened to F32, which is exact. A sum has two operands: each is multiplied by
    its weight, and the products are added, with results rounded to F32. The result is rounded to
    the type of the chunk.

    Attributes:
        source: Kind of the operands.
        target: Kind of the chunk.
        toward_zero: Whether the last rounding cuts off; otherwise it goes to the nearest number,
            and to the even one of two.
        weights: The weights of a sum, which are F32; None for a cast.
    """

    source: ElementKind
    target: ElementKind
    toward_zero: bool = False
    weights: tuple[float, float] | None = None

    @classmethod
    def rules(
        cls, source: DType, target: DType, weights: tuple[float, float] | None = None
    ) -> Sequence[Self]:
        """Return how a chunk may be calculated; the likeliest rule is the first one.

        Args:
            source: Type of the operands, which is castable.
            target: Type of the chunk, too.
            weights: The weights of a sum; None for a cast.
        """
        nearest = cls(_FLOATS[source.code], _FLOATS[target.code], weights=weights)
        loses = weights is not None or nearest.target.mantissa < nearest.source.mantissa
        return [nearest, nearest._replace(toward_zero=True)] if loses else [nearest]

    def operand_bytes(self, total: int) -> int:
        """Return the bytes of all operands of a chunk of `total` bytes, which lie end to end.

        Raises:
            ValueError: The chunk is no whole number of elements.
        """
        if total % self.target.width:
            raise ValueError("its chunk is no whole number of elements")
        operands = 1 if self.weights is None else 2
        return operands * total // self.target.width * self.source.width

    def join(self) -> bytes:
        """Return the bytes that `split` reads."""
        flags = self.toward_zero * _TOWARD_ZERO + (self.weights is not None) * _WEIGHTED
        weights = b"" if self.weights is None else _WEIGHTS.pack(*self.weights)
        return bytes([self.source, self.target, flags]) + weights

    @classmethod
    def split(cls, reader: PayloadReader) -> Self:
        """Read what `join` returned.

        Raises:
            ValueError: It is malformed.
        """
        source, target, flags = reader.byte(), reader.byte(), reader.byte()
        if not {source, target} <= KINDS or flags > (_TOWARD_ZERO | _WEIGHTED):
            raise ValueError("its rule calculates with an unknown kind of elements, or otherwise")
        weights = None
        if flags & _WEIGHTED:
            first, second = _WEIGHTS.unpack(reader.take(_WEIGHTS.size))
            if not (isfinite(first) and isfinite(second)):
                raise ValueError("it has a weight that is no number")
            weights = first, second
        is_cut = bool(flags & _TOWARD_ZERO)
        return cls(ElementKind(source), ElementKind(target), is_cut, weights)

    def apply(self, operands: Buffer, out: memoryview) -> None:
        """Calculate a chunk.

        Args:
            operands: `operand_bytes` bytes: the operands, end to end.
            out: Receives the chunk.
        """
        from casweights.kernels import cast

        if self.weights is None:
            cast(operands, self.source, out, self.target, self.toward_zero)
        else:
            self._add(memoryview(operands), out, self.weights)

    def _add(self, operands: memoryview, out: memoryview, weights: tuple[float, float]) -> None:
        import numpy as np

        from casweights.kernels import cast

        f32, width = ElementKind.FLOAT_32, self.source.width
        half = len(operands) // 2
        for start in range(0, half // width, _BLOCK):
            count = min(_BLOCK, half // width - start)
            products = np.empty((2, count), np.float32)
            for number, product in enumerate(products):
                at = number * half + start * width
                cast(operands[at : at + count * width], self.source, product.data, f32, False)
            with np.errstate(all="ignore"):
                products *= np.array(weights, np.float32)[:, None]
                products[0] += products[1]
            at = start * self.target.width
            block = out[at : at + count * self.target.width]
            cast(products[0].data, f32, block, self.target, self.toward_zero)
