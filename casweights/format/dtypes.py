"""The element types of safetensors, by their codes in headers."""

from __future__ import annotations

from dataclasses import dataclass

_OVERFLOW = 1 << 64  # elements or bits: the reference library refuses this many


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        code: Its name in safetensors headers.
        bits: Bits of one element; below 8, elements are packed.
        is_float: Whether an element consists of sign, exponent and mantissa, from the most
            significant bit down.
    """

    code: str
    bits: int
    is_float: bool = False

    @property
    def width(self) -> int:
        """Bytes of an element; 1 for packed types, which are treated as bytes."""
        return max(1, self.bits // 8)

    @property
    def plane_width(self) -> int:
        """Bytes of one float in an element (a `C64` consists of two); 0 for other types."""
        if self.code == "C64":
            return 4
        return self.bits // 8 if self.is_float else 0

    def nbytes(self, shape: tuple[int, ...]) -> int | None:
        """Return the size of a tensor in bytes.

        Args:
            shape: Dimensions, in elements.

        Returns:
            The size; None if it is not a whole number of bytes, or if the bits, or the elements of
            the first dimensions, reach 2^64.
        """
        elements = 1
        for n in shape:
            elements *= n
            if elements >= _OVERFLOW:  # the whole product of a hostile shape would take hours
                return None
        bits = elements * self.bits
        return None if bits % 8 or bits >= _OVERFLOW else bits // 8


# The order is that of the reference library, which sorts the tensors of a file by it.
DTYPES: dict[str, DType] = {
    dtype.code: dtype
    for dtype in (
        DType("BOOL", 8),
        DType("F4", 4, is_float=True),
        DType("F6_E2M3", 6, is_float=True),
        DType("F6_E3M2", 6, is_float=True),
        DType("U8", 8),
        DType("I8", 8),
        DType("F8_E5M2", 8, is_float=True),
        DType("F8_E4M3", 8, is_float=True),
        DType("F8_E8M0", 8),  # an exponent alone
        DType("F8_E4M3FNUZ", 8, is_float=True),
        DType("F8_E5M2FNUZ", 8, is_float=True),
        DType("I16", 16),
        DType("U16", 16),
        DType("F16", 16, is_float=True),
        DType("BF16", 16, is_float=True),
        DType("I32", 32),
        DType("U32", 32),
        DType("F32", 32, is_float=True),
        DType("C64", 64),  # two F32
        DType("F64", 64, is_float=True),
        DType("I64", 64),
        DType("U64", 64),
    )
}
