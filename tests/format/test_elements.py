"""The kinds of elements of dtypes."""

from __future__ import annotations

import pytest
import torch

from casweights.format.dtypes import DTYPES, DType
from casweights.format.elements import kind_of
from casweights.kernels.kinds import ElementKind

FLOATS = {
    "F8_E5M2": (ElementKind.E5M2, torch.float8_e5m2),
    "F8_E5M2FNUZ": (ElementKind.E5M2, torch.float8_e5m2fnuz),
    "F8_E4M3": (ElementKind.E4M3, torch.float8_e4m3fn),
    "F8_E4M3FNUZ": (ElementKind.E4M3, torch.float8_e4m3fnuz),
    "F16": (ElementKind.FLOAT_16, torch.float16),
    "BF16": (ElementKind.BFLOAT_16, torch.bfloat16),
    "F32": (ElementKind.FLOAT_32, torch.float32),
    "F64": (ElementKind.FLOAT_64, torch.float64),
}


def test_codes_of_kinds_never_change() -> None:
    """Stored payloads contain these codes."""
    assert {kind.name: int(kind) for kind in ElementKind} == {
        "PLAIN_8": 0,
        "PLAIN_16": 1,
        "PLAIN_32": 2,
        "PLAIN_64": 3,
        "E5M2": 4,
        "E4M3": 5,
        "FLOAT_16": 6,
        "BFLOAT_16": 7,
        "FLOAT_32": 8,
        "FLOAT_64": 9,
        "NUMBER": 10,
    }


@pytest.mark.parametrize("code", FLOATS)
def test_mantissas_are_those_of_torch(code: str) -> None:
    kind, dtype = FLOATS[code]
    assert kind_of(DTYPES[code]) is kind
    assert kind.width == dtype.itemsize
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[kind.width]
    above_one = (torch.ones(1).to(dtype).view(bits) + 1).view(dtype)
    assert above_one.double().item() == 1 + 2.0**-kind.mantissa


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_has_a_kind_of_its_width(dtype: DType) -> None:
    kind = kind_of(dtype)
    if dtype.bits < 8:
        assert kind is ElementKind.PLAIN_8
    elif dtype.code == "C64":  # two floats
        assert kind is ElementKind.FLOAT_32
    else:
        assert 8 * kind.width == dtype.bits
        assert (kind.mantissa > 0) is dtype.is_float
