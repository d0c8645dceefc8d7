"""Searches among the frames of packs, few and many."""

from __future__ import annotations

import tracemalloc
from random import Random
from typing import TYPE_CHECKING

import pytest

from casweights.database import pack_search
from casweights.database.pack_rows import PackRows
from casweights.database.pack_search import PackSearch
from casweights.ids import ChunkId, PackId
from tests.database.test_pack_rows import chunk_of, pack_with

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database.packs import PackLocations

MANY, MEMORY_FOR_A_FRAME = 400, 50  # bytes, without those of the columns


def check(search: PackSearch, packs: Sequence[PackLocations], chunks: Sequence[ChunkId]) -> None:
    for chunk in chunks:
        expected = {at for pack in packs for at in pack if at.frame.chunk == chunk}
        found = search.of(chunk)
        assert (set(found), len(found)) == (expected, len(expected))


PACKS = [
    pack_with(1, [chunk_of(n) for n in range(MANY)]),
    pack_with(2, [chunk_of(n) for n in range(50)]),
    pack_with(3, [chunk_of(n // 2) for n in range(MANY)]),
    pack_with(4, [chunk_of(n, 16) for n in range(MANY)]),
]
CHUNKS = [chunk_of(n) for n in (0, 7, 49, 50, MANY - 1, MANY)] + [chunk_of(7, 16)]


@pytest.fixture
def sorted_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of frames that searches sort together."""
    sizes: list[int] = []

    def counted(packs: Sequence[PackLocations]) -> PackRows:
        sizes.append(sum(map(len, packs)))
        return PackRows(packs)

    monkeypatch.setattr(pack_search, "PackRows", counted)
    return sizes


@pytest.mark.parametrize("order", [PACKS, PACKS[::-1]])
def test_every_frame_of_a_chunk_is_found_once_in_few_and_many_packs(
    order: Sequence[PackLocations],
) -> None:
    search = PackSearch()
    for count, pack in enumerate(order, 1):
        search.add(pack)
        search.add(pack)
        check(search, order[:count], CHUNKS)
        search.forget_found()
        check(search, order[:count], CHUNKS)
    left = search.without({order[0].pack, PackId(bytes(32))})
    check(left, order[1:], CHUNKS)
    assert [pack.pack for pack in left] == [pack.pack for pack in order[1:]]


def test_all_frames_are_in_the_rows() -> None:
    search = PackSearch()
    assert len(search.rows()) == 0
    for pack in PACKS:
        search.add(pack)
        check(search, [], [chunk_of(MANY)])
    rows = search.rows()
    assert {rows.location(row) for row in range(len(rows))} == {at for p in PACKS for at in p}
    assert rows is search.rows()
    search.add(pack_with(9, [chunk_of(0)]))
    assert len(search.rows()) == len(rows) + 1
    check(search, [*PACKS, *search], CHUNKS[1:])


def test_the_first_search_sorts_all_frames_once_and_later_ones_what_is_new(
    sorted_sizes: list[int],
) -> None:
    search = PackSearch()
    for n in range(20):
        search.add(pack_with(n, [chunk_of(50 * n + m) for m in range(50)]))
    assert sorted_sizes == []
    for n in range(1000):
        assert len(search.of(chunk_of(n))) == 1
    assert sorted_sizes == [1000]
    search.add(pack_with(20, [chunk_of(1000)]))
    assert len(search.of(chunk_of(1000))) == len(search.of(chunk_of(999))) == 1
    assert sorted_sizes == [1000, 1]


def test_frames_of_many_small_packs_are_sorted_again_a_few_times_only(
    sorted_sizes: list[int],
) -> None:
    search = PackSearch()
    for n in range(200):
        search.add(pack_with(n, [chunk_of(n)]))
        assert len(search.of(chunk_of(n))) == len(search.of(chunk_of(n // 2))) == 1
        assert len(search._parts) <= 8
    assert sum(sorted_sizes) < 200 * 8


def test_a_frame_takes_some_bytes_after_any_number_of_searches() -> None:
    random = Random(0)
    chunks = [ChunkId(random.randbytes(32)) for _ in range(8000)]
    pack = pack_with(1, chunks)
    tracemalloc.start()
    try:
        search = PackSearch()
        search.add(pack)
        assert all(len(search.of(chunk)) == 1 for chunk in chunks)
        search.forget_found()
        assert tracemalloc.get_traced_memory()[0] / len(chunks) < MEMORY_FOR_A_FRAME
    finally:
        tracemalloc.stop()
