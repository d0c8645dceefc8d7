"""Columns of rows say what a loop over the rows would say."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.format.segment_rows import (
    KEY_SIZE,
    ROW_SIZE,
    between,
    in_order,
    leading_numbers,
    make_rows,
    pack_numbers,
    renumbered,
)

# Few different bytes, so that rows are equal, and end in zeros, often.
KEYS = st.binary(min_size=2, max_size=2).map(lambda key: key + bytes(KEY_SIZE - 2))
PACKS = 4
ROWS = st.lists(st.tuples(KEYS, st.integers(0, PACKS - 1)), max_size=40)


def encoded(rows: list[tuple[bytes, int]]) -> list[bytes]:
    return [key + struct.pack("<I", number) for key, number in rows]


def split(rows: bytes) -> list[bytes]:
    return [rows[at : at + ROW_SIZE] for at in range(0, len(rows), ROW_SIZE)]


@given(st.lists(ROWS, max_size=4))
def test_rows_are_in_order_and_each_once(parts: list[list[tuple[bytes, int]]]) -> None:
    every = {row for rows in parts for row in encoded(rows)}
    assert split(in_order(b"".join(encoded(rows)) for rows in parts)) == sorted(every)


@given(ROWS, st.binary(min_size=2, max_size=2), st.binary(min_size=2, max_size=2))
def test_rows_of_a_range_are_chosen(
    rows: list[tuple[bytes, int]], first: bytes, last: bytes
) -> None:
    chosen = [row for row in encoded(rows) if first <= row[:2] <= last]
    assert split(between(b"".join(encoded(rows)), first, last)) == chosen


@given(ROWS, st.lists(st.none() | st.integers(0, 2**32 - 1), min_size=PACKS, max_size=PACKS))
def test_rows_get_the_new_numbers_of_their_packs(
    rows: list[tuple[bytes, int]], numbers: list[int | None]
) -> None:
    pairs = ((key, numbers[number]) for key, number in rows)
    expected = encoded([(key, new) for key, new in pairs if new is not None])
    assert split(renumbered(b"".join(encoded(rows)), numbers)) == expected


def test_a_row_of_no_pack_is_refused() -> None:
    with pytest.raises(IndexError):
        renumbered(make_rows([bytes(32)], PACKS), [0] * PACKS)


@given(ROWS)
def test_numbers_are_those_of_each_row(rows: list[tuple[bytes, int]]) -> None:
    data = b"".join(make_rows([key + bytes(16)], number) for key, number in rows)
    assert split(data) == encoded(rows)
    assert pack_numbers(data).tolist() == [number for _, number in rows]
    assert leading_numbers(data).tolist() == [key[0] << 8 | key[1] for key, _ in rows]
