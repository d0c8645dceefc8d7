"""The kernels of records, compiled and in numpy, compared with the independent reader."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from casweights.kernels import _compiled
from casweights.kernels.reference import fields as twins

if TYPE_CHECKING:
    from collections.abc import Iterator

any_bits = pytest.mark.parametrize("bits", [4, 8])
FIELD = "a field must lie"
NUMBERS = "numbers of 4 or 8 bits"


def implementations() -> Iterator[Any]:
    """Yield the compiled kernels of each target, and the twins."""
    for name in _compiled.TARGETS:
        _compiled.use(name)
        yield _compiled
    yield twins


@pytest.mark.parametrize(
    ("size", "offset", "own"),
    [(34, 2, 32), (34, 0, 2), (18, 2, 16), (4, 0, 4), (7, 3, 3), (5, 5, 0)],
)
@pytest.mark.parametrize("count", [1, 300])
def test_fields_are_taken_and_put_back(size: int, offset: int, own: int, count: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (count, size), np.uint8)
    for module in implementations():
        stream = bytearray(count * own)
        module.take_field(rows.tobytes(), size, offset, stream)
        assert bytes(stream) == rows[:, offset : offset + own].tobytes()
        again = rows.copy()
        again[:, offset : offset + own] = 0
        module.put_field(bytes(stream), size, offset, again.data.cast("B"))
        assert np.array_equal(again, rows)


def test_fields_that_do_not_fit_are_refused() -> None:
    wrong = [(12, 4, 2, 9), (12, 4, 4, 3), (12, 4, -1, 3), (12, 5, 0, 2), (12, 0, 0, 0)]
    wrong += [(12, 4, 0, 4), (12, 4, 0, 15), (0, 4, 0, 1), (12, -4, 0, 3), (12, 24, 0, 1)]
    for module in implementations():
        for records, size, offset, stream in wrong:
            with pytest.raises(ValueError, match=FIELD):
                module.take_field(bytes(records), size, offset, bytearray(stream))
            with pytest.raises(ValueError, match=FIELD):
                module.put_field(bytes(stream), size, offset, bytearray(records))
        with pytest.raises(TypeError, match="read-write"):
            module.take_field(bytes(4), 2, 0, bytes(2))
        with pytest.raises(TypeError, match="read-write"):
            module.put_field(bytes(2), 2, 0, bytes(4))


@pytest.mark.parametrize("size", [1, 18, 34])
@pytest.mark.parametrize("count", [1, 100, 1000])
def test_values_of_columns_are_counted(size: int, count: int) -> None:
    rows = np.random.default_rng(1).integers(0, 1 + np.arange(size) * 7, (count, size)) % 256
    records = rows.astype(np.uint8).tobytes()
    expected = [len(set(column)) for column in rows.T.tolist()]
    for module in implementations():
        assert np.frombuffer(module.count_values(records, size), "<u2").tolist() == expected
        for wrong in (0, -1, len(records) + 1):
            with pytest.raises(ValueError, match="of one record or more"):
                module.count_values(records, wrong)
        with pytest.raises(ValueError, match="of one record or more"):
            module.count_values(b"", size)


@any_bits
@pytest.mark.parametrize("shift", [0, 1])
def test_numbers_become_the_elements_of_the_page(bits: int, shift: int) -> None:
    """With a shift, the elements are not aligned."""
    page = importlib.import_module("tools.spec.records")
    old, new = (
        np.random.default_rng(n).permutation(256).astype(np.uint8).tobytes() for n in (2, 3)
    )
    field = page.Field(bits, 1, 0)
    alone = page.expected(field, old)
    pairs = zip(alone, page.unpacked(field, new), strict=True)
    found = np.array([known >> 8 << 8 | number for known, number in pairs], "<u2")
    count = 256 * 8 // bits
    for module in implementations():
        numbers = bytearray(count)
        module.unpack_numbers(new, bits, numbers)
        assert list(numbers) == page.unpacked(field, new)
        known, elements = (memoryview(bytearray(2 * count + shift))[shift:] for _ in range(2))
        module.number_elements(old, bits, b"", known)
        assert np.frombuffer(known, "<u2").tolist() == alone
        module.number_elements(new, bits, known, elements)
        assert bytes(elements) == found.tobytes()
        stored = bytearray(256)
        module.pack_numbers(elements, known, bits, stored)
        assert bytes(stored) == new


@any_bits
def test_elements_that_are_no_numbers_are_refused(bits: int) -> None:
    known = np.full(40, 0x4000, "<u2")
    for module in implementations():
        for at in (0, 39):
            for bit in range(16):
                found = known.copy()
                found[at] ^= 1 << bit
                args = found.tobytes(), known.tobytes(), bits, bytearray(40 * bits // 8)
                if bit < bits:
                    module.pack_numbers(*args)
                    continue
                with pytest.raises(ValueError, match="out of range"):
                    module.pack_numbers(*args)


def test_wrong_sizes_of_numbers_are_refused() -> None:
    for module in implementations():
        for stored, bits, count in [(4, 4, 7), (4, 8, 8), (4, 5, 4), (4, 0, 4), (4, 16, 2)]:
            with pytest.raises(ValueError, match=NUMBERS):
                module.unpack_numbers(bytes(stored), bits, bytearray(count))
            with pytest.raises(ValueError, match=NUMBERS):
                module.number_elements(bytes(stored), bits, b"", bytearray(2 * count))
            with pytest.raises(ValueError, match=NUMBERS):
                module.pack_numbers(bytes(2 * count), bytes(2 * count), bits, bytearray(stored))
        with pytest.raises(ValueError, match=NUMBERS):
            module.number_elements(bytes(4), 8, bytes(2), bytearray(8))
        with pytest.raises(ValueError, match=NUMBERS):
            module.number_elements(bytes(4), 8, b"", bytearray(9))
        with pytest.raises(ValueError, match=NUMBERS):
            module.pack_numbers(bytes(8), bytes(6), 8, bytearray(4))
        module.unpack_numbers(b"", 8, bytearray())
        module.number_elements(b"", 4, b"", bytearray())
        module.pack_numbers(b"", b"", 4, bytearray())
        with pytest.raises(TypeError, match="read-write"):
            module.unpack_numbers(bytes(1), 8, bytes(1))
        with pytest.raises(TypeError, match="read-write"):
            module.number_elements(bytes(1), 8, b"", bytes(2))
        with pytest.raises(TypeError, match="read-write"):
            module.pack_numbers(bytes(2), bytes(2), 8, bytes(1))
