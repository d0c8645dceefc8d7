"""The element types of safetensors."""

from __future__ import annotations

import pytest
import torch

from casweights.format.dtypes import DTYPES
from casweights.testing.strategies import TORCH_DTYPES


def test_every_safetensors_dtype_of_torch_is_known() -> None:
    bits = sorted(dtype.itemsize * 8 for dtype in TORCH_DTYPES)
    packed = getattr(torch, "float4_e2m1fn_x2", None)
    ours = [d.bits for d in DTYPES.values() if not d.code.startswith("F6_")]
    assert sorted(8 if n == 4 else n for n in ours) == bits
    assert packed is None or DTYPES["F4"].bits == 4


@pytest.mark.parametrize(
    ("code", "shape", "nbytes"),
    [
        ("F32", (), 4),
        ("F32", (2, 3), 24),
        ("F32", (0, 3), 0),
        ("BOOL", (7,), 7),
        ("F4", (3,), None),
        ("F4", (3, 2), 3),
        ("F4", (), None),
        ("F6_E3M2", (4,), 3),
        ("F6_E3M2", (2,), None),
        ("C64", (2,), 16),
    ],
)
def test_nbytes_counts_whole_bytes_or_returns_none(
    code: str, shape: tuple[int, ...], nbytes: int | None
) -> None:
    assert DTYPES[code].nbytes(shape) == nbytes


def test_plane_width_is_the_size_of_floats() -> None:
    widths = {code: dtype.plane_width for code, dtype in DTYPES.items() if dtype.plane_width}
    fp8 = {"F8_E5M2": 1, "F8_E4M3": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}
    assert widths == {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "C64": 4} | fp8
