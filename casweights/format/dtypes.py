"""The element types of safetensors, by their codes in its headers."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_BITS = 8 << 63


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        code: Its name in safetensors headers.
        bits: Bits of one element; below 8, elements are packed.
        is_float: Sign, exponent and mantissa, in this order from the most significant bit.
    """

    code: str
    bits: int
    is_float: bool = False

    @property
    def plane_width(self) -> int:
        """Bytes of the floats that the elements consist of; 0 where they are not floats."""
        if self.code == "C64":
            return 4
        return self.bits // 8 if self.is_float else 0

    def nbytes(self, shape: tuple[int, ...]) -> int | None:
        """Bytes of a tensor of this type, or None where they are no whole number below 2^63."""
        bits = self.bits
        for n in shape:
            bits *= n
            if bits >= _MAX_BITS:  # products of hostile shapes would take hours
                return None
        return None if bits % 8 else bits // 8


_FLOATS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
}
_OTHERS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E8M0": 8,  # an exponent alone
    "I16": 16,
    "U16": 16,
    "I32": 32,
    "U32": 32,
    "I64": 64,
    "U64": 64,
    "C64": 64,  # two F32
}

DTYPES: dict[str, DType] = {
    **{code: DType(code, bits, is_float=True) for code, bits in _FLOATS.items()},
    **{code: DType(code, bits) for code, bits in _OTHERS.items()},
}
