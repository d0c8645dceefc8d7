"""Sets of chunks as flags, and plain sets."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from casweights.database.chunk_numbers import ChunkNumbers, ChunkSet
from casweights.database.pack_rows import PackRows
from tests.database.test_pack_rows import CHUNKS, NUMBERS, PACKS, pack_of

STEPS = st.lists(st.tuples(st.sampled_from(["add", "discard"]), st.integers(0, 1), NUMBERS))


@given(PACKS, st.lists(NUMBERS), STEPS)
@example([], [], [("add", 0, 0), ("add", 0, 1), ("add", 1, 1)])  # of numbers that another set made
def test_sets_of_chunks_hold_what_plain_sets_hold(
    listed: list[list[int]], first: list[int], steps: list[tuple[str, int, int]]
) -> None:
    packs = [pack_of(number, chunks) for number, chunks in enumerate(listed)]
    numbers = ChunkNumbers(PackRows(packs))
    begin = [CHUNKS[n] for n in first]
    sets, plain = [ChunkSet(numbers, begin), ChunkSet(numbers)], [set(begin), set()]
    for kind, which, n in steps:
        chunk = CHUNKS[n]
        if kind == "add":
            number = sets[which].add(chunk)
            assert (number is None) == (chunk in plain[which])
            assert number is None or numbers.chunk(number) == chunk
            plain[which].add(chunk)
        else:
            sets[which].discard(chunk)
            plain[which].discard(chunk)
        for found, expected in zip(sets, plain, strict=True):
            assert len(found) == len(expected)
            assert sorted(found) == sorted(expected)
            assert [c in found for c in CHUNKS] == [c in expected for c in CHUNKS]


@given(PACKS, st.lists(NUMBERS))
def test_each_chunk_keeps_one_number(listed: list[list[int]], asked: list[int]) -> None:
    packs = [pack_of(number, chunks) for number, chunks in enumerate(listed)]
    numbers = ChunkNumbers(PackRows(packs))
    found: dict[int, int] = {}
    for n in asked:
        number = numbers.number(CHUNKS[n])
        assert found.setdefault(n, number) == number < len(numbers)
        assert numbers.find(CHUNKS[n]) == number
        assert numbers.chunk(number) == CHUNKS[n]
    assert len(set(found.values())) == len(found)
