"""Searches among few and many frames of packs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casweights.database.pack_search import PackSearch
from casweights.database.packs import PackLocations
from casweights.format.columns import IdColumn
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.pack import Frame, encode_frames, parse_frames
from casweights.ids import ChunkId, PackId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MANY = 400  # frames: too many for entries at once


def chunk_of(number: int, width: int = 32) -> ChunkId:
    return ChunkId(number.to_bytes(4, "big") * (width // 4))


def pack_of(number: int, chunks: Sequence[ChunkId]) -> PackLocations:
    frames = [Frame(own, 64, 1, PREFIX_SIZE + n, 1, bytes(8)) for n, own in enumerate(chunks)]
    return PackLocations(PackId(bytes([number]) * 32), parse_frames(encode_frames(frames)))


def check(search: PackSearch, packs: Sequence[PackLocations], chunks: Sequence[ChunkId]) -> None:
    for chunk in chunks:
        expected = {at for pack in packs for at in pack if at.frame.chunk == chunk}
        found = search.of(chunk)
        assert (set(found), len(found)) == (expected, len(expected))


PACKS = [
    pack_of(1, [chunk_of(n) for n in range(MANY)]),
    pack_of(2, [chunk_of(n) for n in range(50)]),
    pack_of(3, [chunk_of(n // 2) for n in range(MANY)]),
    pack_of(4, [chunk_of(n, 16) for n in range(MANY)]),
]
CHUNKS = [chunk_of(n) for n in (0, 7, 49, 50, MANY - 1, MANY)] + [chunk_of(7, 16)]


@pytest.mark.parametrize("rounds", [1, MANY])
def test_every_frame_of_a_chunk_is_found_once_before_and_after_entries_are_made(
    rounds: int,
) -> None:
    search = PackSearch()
    for count, pack in enumerate(PACKS, 1):
        search.add(pack)
        search.add(pack)
        for _ in range(rounds):
            search.forget_found()
            check(search, PACKS[:count], CHUNKS)
    left = search.without({PACKS[0].pack, PackId(bytes(32))})
    check(left, PACKS[1:], CHUNKS)
    assert [pack.pack for pack in left] == [pack.pack for pack in PACKS[1:]]


def test_entries_are_made_for_many_searches_and_not_for_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    iterate = IdColumn.__iter__

    def counted(column: IdColumn) -> Iterator[bytes]:
        made.append(len(column))
        return iterate(column)

    monkeypatch.setattr(IdColumn, "__iter__", counted)
    search = PackSearch()
    search.add(PACKS[0])
    for number in range(20):
        assert len(search.of(chunk_of(number))) == 1
    assert made == []
    for number in range(MANY):
        assert len(search.of(chunk_of(number))) == 1
    assert made == [MANY]
