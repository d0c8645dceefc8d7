"""Rows of packs, and a dict with the same frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.database import pack_rows
from casweights.database.pack_rows import PackRows
from casweights.database.packs import PackLocations
from casweights.format.columns import IdColumn
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.pack import Frame, Location, encode_frames, parse_frames
from casweights.format.snapshot import NO_FRAMES
from casweights.ids import ChunkId, PackId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHUNKS = [ChunkId(bytes([n]) * 31 + end) for n in range(4) for end in (b"\0", b"\1")]
NUMBERS = st.integers(0, len(CHUNKS) - 1)
NONE = PackLocations(PackId(bytes(32)), NO_FRAMES)
PACKS = st.lists(st.lists(NUMBERS, min_size=1, max_size=6), max_size=6)


def pack_of(number: int, chunks: Sequence[int]) -> PackLocations:
    return pack_with(number, [CHUNKS[chunk] for chunk in chunks])


def pack_with(number: int, chunks: Sequence[ChunkId]) -> PackLocations:
    frames = [Frame(own, 64, 1, PREFIX_SIZE + n, 1, bytes(8)) for n, own in enumerate(chunks)]
    return PackLocations(PackId(bytes([number]) * 32), parse_frames(encode_frames(frames)))


def check(rows: PackRows, packs: Sequence[PackLocations]) -> None:
    """Compare rows with a dict of the frames of these packs."""
    expected: dict[ChunkId, list[Location]] = {}
    for location in (at for pack in packs for at in pack):
        expected.setdefault(location.frame.chunk, []).append(location)
    assert len(rows) == sum(map(len, expected.values()))
    for chunk in CHUNKS:
        found = expected.get(chunk, [])
        assert rows.of(chunk) == found
        own = list(rows.rows(chunk))
        assert sorted(own) == sorted(number for at in found if (number := rows.row(at)) is not None)
        assert rows.first(chunk) == (own[0] if own else None)
    for row in range(len(rows)):
        assert rows.row(rows.location(row)) == row
        assert rows.chunk(row) == rows.location(row).frame.chunk


@given(PACKS)
def test_rows_of_packs_are_found_like_those_of_a_dict(listed: list[list[int]]) -> None:
    packs = [pack_of(number, chunks) for number, chunks in enumerate(listed)]
    check(PackRows(packs), packs)
    assert PackRows(packs).row(pack_of(99, [0])[0]) is None


def chunk_of(number: int, width: int = 32) -> ChunkId:
    """Return one of many IDs, of which few begin alike."""
    return ChunkId((number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") * (width // 8))


def forged(number: int) -> ChunkId:
    """Return one of many IDs that begin alike."""
    return ChunkId(bytes(16) + number.to_bytes(16, "big"))


@pytest.mark.parametrize("count", [1, 200, 300])  # some are sorted by loops, others by numpy
@pytest.mark.parametrize("make", [chunk_of, forged])
def test_few_and_many_ids_are_found_whether_they_begin_alike_or_not(
    count: int, make: Callable[[int], ChunkId]
) -> None:
    listed = [make(n) for n in range(count)]
    packs = [pack_with(0, listed), pack_with(1, [chunk_of(n, 16) for n in range(9)]), NONE]
    packs.append(pack_with(2, listed[::3]))
    rows = PackRows(packs)
    for n, chunk in enumerate(listed):
        assert [at.pack[0] for at in rows.of(chunk)] == ([0, 2] if n % 3 == 0 else [0])
    for other in (make(count), ChunkId(b"\xff" * 32), ChunkId(bytes(16)), chunk_of(count, 16)):
        assert len(rows.of(other)) == (other in {chunk_of(n, 16) for n in range(9)})


@pytest.mark.parametrize("count", [200, 1000])
def test_forged_ids_that_begin_alike_do_not_slow_searches_down(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = PackRows([pack_with(0, [forged(n) for n in range(count)])])
    compared: list[int] = []
    at = IdColumn.at

    def counted(column: IdColumn, number: int) -> bytes:
        compared.append(number)
        return at(column, number)

    monkeypatch.setattr(IdColumn, "at", counted)
    assert list(rows.rows(forged(7))) == [rows.first(forged(7))]
    assert len(compared) < 10


def test_chunks_whose_ids_have_the_same_hash_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pack_rows, "hash", lambda _: 7, raising=False)
    packs = [pack_of(0, [0, 1, 2, 0] * 4), pack_of(1, [2, 3])]
    check(PackRows(packs), packs)
