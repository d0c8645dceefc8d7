"""The kernel `expect`, compiled and in numpy, compared with the independent reader."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casweights.kernels import _compiled
from casweights.kernels.reference import numbers as twins

if TYPE_CHECKING:
    from collections.abc import Iterator

EDGES = [0, 1, 0x03FF, 0x0400, 0x2E66, 0x2E67, 0x7BFF, 0x7C00, 0x7E00]
SCALES = np.array([scale | sign for scale in EDGES for sign in (0, 0x8000)], "<u2")
any_bits = pytest.mark.parametrize("bits", [4, 8])


def implementations() -> Iterator[Any]:
    """Yield the compiled kernels of each target, and the twins."""
    for name in _compiled.TARGETS:
        _compiled.use(name)
        yield _compiled
    yield twins


def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Return two scales for each record: all pairs of those at edges, and others that are near."""
    old, new = (np.ravel(scales) for scales in np.meshgrid(SCALES, SCALES))
    rng = np.random.default_rng(0)
    near = rng.integers(0x1800, 0x3C00, 200, dtype="<u2")
    moved = (near + rng.integers(-40, 40, 200)).astype("<u2")
    return np.concatenate([old, near]), np.concatenate([new, moved])


def expect(module: Any, old: np.ndarray, new: np.ndarray, numbers: np.ndarray, bits: int) -> Any:
    out = np.zeros(numbers.size, "<u2")
    module.expect(old.tobytes(), new.tobytes(), numbers.tobytes(), bits, out.data.cast("B"))
    return out


@any_bits
def test_all_implementations_are_those_of_the_page(bits: int) -> None:
    page = importlib.import_module("tools.spec.records")
    old, new = pairs()
    numbers = np.tile(np.arange(1 << bits, dtype=np.uint8), (len(old), 1))
    expected = [
        page.expected_element(number, 1 << (bits - 1), s, t)
        for s, t in zip(old.tolist(), new.tolist(), strict=True)
        for number in range(1 << bits)
    ]
    for module in implementations():
        assert expect(module, old, new, numbers, bits).tolist() == expected


@any_bits
def test_numbers_follow_their_scale(bits: int) -> None:
    """What is expected is nearly the quantized number, and its direction that of the error."""
    rng = np.random.default_rng(1)
    zero = 1 << (bits - 1)
    scales = rng.uniform(0.001, 0.1, (2, 500)).astype(np.float16)
    scales[1] = (scales[0] * rng.uniform(0.9, 1.5, 500)).astype(np.float16)
    numbers = rng.integers(1, 2 * zero, (500, 32)).astype(np.uint8)
    found = expect(_compiled, scales[0].view("<u2"), scales[1].view("<u2"), numbers, bits)
    ratio = scales[0].astype(np.float64) / scales[1]
    exact = np.clip((numbers.astype(int) - zero) * ratio[:, None], -zero, zero - 1).ravel()
    changed = np.repeat(scales[0] != scales[1], 32)
    number = (found & 255).astype(int) - zero
    assert changed.mean() > 0.9
    assert np.abs(number - exact)[changed].max() <= 0.51
    inside = changed & (np.abs(exact) < zero - 1) & (np.abs(number - exact) > 0.01)
    assert np.array_equal((found >> 15)[inside] == 1, (exact < number)[inside])


def test_wrong_arguments_are_refused() -> None:
    wrong = [
        (2, 4, 8, 8, 16),
        (2, 2, 8, 7, 16),
        (2, 2, 8, 8, 15),
        (3, 3, 8, 8, 16),
        (0, 0, 8, 8, 16),
        (6, 6, 8, 8, 16),
    ]
    for module in implementations():
        for old, new, numbers, bits, size in wrong:
            with pytest.raises(ValueError, match="two scales for each record"):
                module.expect(bytes(old), bytes(new), bytes(numbers), bits, bytearray(size))
        with pytest.raises(TypeError, match="read-write"):
            module.expect(bytes(2), bytes(2), bytes(1), 8, bytes(2))
        module.expect(b"", b"", b"", 8, bytearray())


@any_bits
def test_unaligned_elements_are_set(bits: int) -> None:
    old, new = np.array([0x2E66], "<u2"), np.array([0x2E67], "<u2")
    numbers = np.arange(8, dtype=np.uint8)
    out = memoryview(bytearray(2 * 8 + 1))[1:]
    for module in implementations():
        module.expect(old.tobytes(), new.tobytes(), numbers.tobytes(), bits, out)
        assert bytes(out) == expect(twins, old, new, numbers, bits).tobytes()
