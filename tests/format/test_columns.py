"""Columns of IDs and numbers, few and many."""

from __future__ import annotations

from array import array
from itertools import accumulate
from random import Random

import pytest

from casweights.format.columns import IdColumn, NumberColumn, rows_of, running_sums

SIZES = [0, 1, 5, 256, 257, 2000]  # loops up to 256, numpy above


def ids(count: int, width: int) -> list[bytes]:
    """Return IDs of which every third is there twice."""
    random = Random(count)
    made = [random.randbytes(width) for _ in range(count)]
    return [made[n - 1] if n % 3 == 1 else made[n] for n in range(count)]


def check(column: IdColumn, rows: list[bytes], others: list[bytes]) -> None:
    for wanted in {*rows, *others}:
        assert column.find(wanted) == [n for n, own in enumerate(rows) if own == wanted]


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_an_id_is_found_in_all_its_rows(count: int, width: int) -> None:
    rows = ids(count, width)
    column = IdColumn(b"".join(rows), width)
    assert list(column) == rows == [column[n] for n in range(len(column))] == column[:]
    check(column, rows, [bytes(width), b"\xff" * width, *(own[:8] + bytes(24) for own in rows)])


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("alike", [2, 300])
def test_ids_that_begin_alike_are_told_apart(width: int, alike: int) -> None:
    begin = b"\xfe" * 8
    rows = [begin + n.to_bytes(width - 8, "little") for n in range(alike)] + ids(50, width)
    check(IdColumn(b"".join(rows), width), rows, [begin + b"\xff" * (width - 8)])


def test_forged_ids_that_begin_alike_do_not_slow_searches_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    column = IdColumn(b"".join(bytes(16) + n.to_bytes(16, "big") for n in range(1000)), 32)
    assert column.find(column[0]) == [0]
    compared: list[int] = []
    monkeypatch.setattr(IdColumn, "at", lambda _, n: compared.append(n))
    assert column.find(bytes(31) + b"\x07") == [7]
    assert len(compared) < 10


def test_columns_follow_each_other_in_one() -> None:
    first, second = ids(5, 32), ids(7, 32)
    parts = [IdColumn(b"".join(rows), 32) for rows in (first, second)]
    assert list(IdColumn.end_to_end(parts)) == first + second


def test_a_part_of_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="33 bytes"):
        IdColumn(bytes(33), 32)


@pytest.mark.parametrize("count", SIZES)
def test_few_and_many_numbers_are_compared_alike(count: int) -> None:
    random = Random(count)
    numbers = [random.randrange(2**32 - 1) for _ in range(count)]
    column = NumberColumn(NumberColumn.encode(numbers))
    assert list(column.numbers) == numbers
    assert column.most() == max(numbers, default=0)
    assert not column.exceeds(column)
    if numbers:
        last = NumberColumn(NumberColumn.encode([*numbers[:-1], numbers[-1] + 1]))
        assert last.exceeds(column)
        assert not column.exceeds(last)


@pytest.mark.parametrize("count", SIZES)
def test_few_and_many_numbers_are_added_alike(count: int) -> None:
    numbers = array("I", [2**32 - 1 - n for n in range(count)])
    sums = running_sums(numbers, 8)
    assert list(sums) == list(accumulate(numbers, initial=8))
    assert {type(number) for number in sums} == {int}
    bits = bytes(n % 2 for n in range(count))
    assert list(running_sums(bits, 0)) == list(accumulate(bits, initial=0))


@pytest.mark.parametrize("count", SIZES)
def test_few_and_many_rows_with_a_value_are_found_alike(count: int) -> None:
    column = bytes(n % 3 for n in range(count))
    assert rows_of(1, column) == list(range(1, count, 3))
