"""Columns of IDs and numbers, few and many."""

from __future__ import annotations

import sys
from array import array
from itertools import accumulate
from random import Random

import pytest

from casweights.format.columns import (
    IdColumn,
    LinkedIds,
    NumberColumn,
    RunningSums,
    repeats,
    rows_of,
    sort_rows,
)

SIZES = [0, 1, 5, 256, 257, 2000]  # loops up to 256, numpy above


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_column_gives_its_ids_by_number_and_in_order(count: int, width: int) -> None:
    random = Random(count)
    rows = [random.randbytes(width) for _ in range(count)]
    column = IdColumn(b"".join(rows), width)
    assert list(column) == rows == [column[n] for n in range(len(column))] == column[:]
    begin = [int.from_bytes(own[:8], sys.byteorder) for own in rows]
    assert list(column.beginnings()) == begin


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize(("count", "others"), [(0, 0), (0, 3), (3, 0), (1, 1), (700, 300)])
def test_ids_are_the_same_by_their_place_in_another_column(
    count: int, others: int, width: int
) -> None:
    """Also those that begin alike, repeat, end with zeros, or are not in the other column."""
    random = Random(count)
    known = [bytes(width - 2) + random.randbytes(2) for _ in range(others)]
    known += [one[:-1] + b"\0" for one in known[::3]] + known[:1]
    rows = [random.choice([*known, random.randbytes(width)]) for _ in range(count)]
    rows += [bytes(width)] * bool(count)
    column = IdColumn(b"".join(rows), width)
    linked = LinkedIds(column, IdColumn(b"".join(known), width))
    assert list(linked) == rows == linked[:]
    assert [linked[n] for n in range(-len(linked), 0)] == rows


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
    bits = bytes(n % 2 for n in range(count))
    for column, first in ((numbers, 8), (bits, 0)):
        sums = RunningSums(column, first)
        found = [*map(sums.at, range(count)), sums.total]
        assert found == list(accumulate(column, initial=first))
        assert {type(number) for number in found} == {int}


@pytest.mark.parametrize("count", SIZES)
def test_few_and_many_rows_with_a_value_are_found_alike(count: int) -> None:
    column = bytes(n % 3 for n in range(count))
    assert rows_of(1, column) == list(range(1, count, 3))


@pytest.mark.parametrize("count", SIZES)
def test_few_and_many_keys_are_sorted_alike(count: int) -> None:
    random = Random(count)
    keys = array("Q", [random.choice([2**64 - 1 - n, n // 3]) for n in range(count)])
    ordered, rows = sort_rows(keys)
    assert list(ordered) == sorted(keys)
    assert [keys[row] for row in rows] == list(ordered)
    assert sorted(rows) == list(range(count))


@pytest.mark.parametrize("count", SIZES)
def test_few_and_many_numbers_are_compared_with_earlier_ones_alike(count: int) -> None:
    keys = array("Q", range(2**64 - count, 2**64))
    assert not repeats(keys, 3)
    if count > 3:
        keys[-1] = keys[-4]
        assert repeats(keys, 3)
        assert not repeats(keys, 2)
