"""The kernel `cast`, compiled and in numpy, compared with torch and the independent reader."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from casweights.kernels import _compiled
from casweights.kernels.kinds import ElementKind
from casweights.kernels.reference import casts as twins

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = {
    ElementKind.E5M2: torch.float8_e5m2,
    ElementKind.E4M3: torch.float8_e4m3fn,
    ElementKind.FLOAT_16: torch.float16,
    ElementKind.BFLOAT_16: torch.bfloat16,
    ElementKind.FLOAT_32: torch.float32,
}
any_kind = pytest.mark.parametrize("kind", DTYPES)
any_target = pytest.mark.parametrize("target", DTYPES)


def implementations() -> Iterator[Any]:
    """Yield the compiled kernels of each target, and the twins."""
    for name in _compiled.TARGETS:
        _compiled.use(name)
        yield _compiled
    yield twins


def elements(kind: ElementKind) -> np.ndarray:
    """Return every element of a kind; of F32, those near everything that is rounded, and others."""
    if kind.width < 4:
        return np.arange(1 << 8 * kind.width, dtype=f"<u{kind.width}")
    edges = np.arange(1 << 16, dtype="<u4") << np.uint32(16)
    near = [edges + np.uint32(n) for n in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001)]
    others = np.random.default_rng(0).integers(0, 1 << 32, 1 << 17, dtype="<u4")
    return np.concatenate([*near, others, np.arange(1 << 12, dtype="<u4")])


def cast(module: Any, bits: np.ndarray, kind: int, target: ElementKind, cut: bool) -> np.ndarray:
    out = np.zeros(len(bits), f"<u{target.width}")
    module.cast(bits.data.cast("B"), kind, out.data.cast("B"), target, cut)
    return out


@any_kind
@any_target
@pytest.mark.parametrize("cut", [False, True])
def test_all_implementations_agree(kind: ElementKind, target: ElementKind, cut: bool) -> None:
    first, *others = [
        cast(module, elements(kind), kind, target, cut) for module in implementations()
    ]
    assert all(np.array_equal(first, other) for other in others)


@any_kind
@any_target
def test_casts_are_those_of_torch(kind: ElementKind, target: ElementKind) -> None:
    bits = elements(kind)
    floats = torch.from_numpy(bits.view(np.uint8)).view(DTYPES[kind]).float()
    expected = floats.to(DTYPES[target]).view(torch.uint8).numpy().view(f"<u{target.width}")
    found = cast(_compiled, bits, kind, target, False)
    is_number = ~torch.isnan(floats).numpy()  # of which there are several
    assert np.array_equal(found[is_number], expected[is_number])
    back = torch.from_numpy(found.view(np.uint8)).view(DTYPES[target]).float()
    assert torch.isnan(back).numpy()[~is_number].all()


@any_kind
@any_target
@pytest.mark.parametrize("cut", [False, True])
def test_casts_are_those_of_the_page(kind: ElementKind, target: ElementKind, cut: bool) -> None:
    floats = importlib.import_module("tools.spec.arithmetic").FLOATS
    bits = np.random.default_rng(1).permutation(elements(kind))[:4000]
    expected = [floats[target].bits(floats[kind].value(int(one)), cut) for one in bits]
    assert cast(_compiled, bits, kind, target, cut).tolist() == expected


@pytest.mark.parametrize("module", [_compiled, twins], ids=["compiled", "twin"])
@pytest.mark.parametrize(
    ("kind", "size", "target", "out"),
    [(8, 8, 7, 2), (8, 7, 7, 2), (7, 4, 8, 4), (9, 8, 8, 4), (8, 4, 3, 8), (-1, 4, 8, 4)],
)
def test_unknown_kinds_and_other_sizes_are_refused(
    module: Any, kind: int, size: int, target: int, out: int
) -> None:
    with pytest.raises(ValueError, match=r"casts need|valid ElementKind"):
        module.cast(bytes(size), kind, bytearray(out), target, False)


@pytest.mark.parametrize("module", [_compiled, twins], ids=["compiled", "twin"])
def test_the_result_must_be_writable(module: Any) -> None:
    with pytest.raises(TypeError, match="read-write"):
        module.cast(bytes(4), 8, bytes(2), 7, False)
