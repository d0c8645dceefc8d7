"""The search for the cheapest chain: compared with an exhaustive search, and what it looks at."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.database.chain import Cost
from casweights.database.chains import MAX_LINKS, ChainFinder
from casweights.database.frame_table import FrameTable
from casweights.format.pack import Frame, Location
from casweights.ids import ChunkId, PackId

PACK = PackId(bytes(32))
CHUNKS = 6

# Chunk, base (None for none), stored bytes, raw size.
frames = st.tuples(
    st.integers(0, CHUNKS - 1),
    st.none() | st.integers(0, CHUNKS - 1),
    st.integers(1, 50),
    st.sampled_from([100, 100, 100, 200]),
)


def chunk_id(n: int) -> ChunkId:
    return ChunkId(bytes([n]) * 32)


def location(offset: int, frame: tuple[int, int | None, int, int]) -> Location:
    chunk, base, size, raw_size = frame
    based = None if base is None else chunk_id(base)
    return Location(PACK, Frame(chunk_id(chunk), raw_size, 0, offset, size, bytes(8), based))


def cheapest(places: list[Location], have: set[ChunkId], wanted: ChunkId) -> float:
    """Return the cost of the cheapest chain, by going over all frames until nothing improves."""
    cost = dict.fromkeys(places, math.inf)
    for _ in places:
        for place in places:
            frame = place.frame
            before = [
                cost[other]
                for other in places
                if (other.frame.chunk, other.frame.raw_size) == (frame.base, frame.raw_size)
            ]
            if frame.base is None or frame.base in have:
                before = [0]
            cost[place] = min([cost[place], *(nbytes + frame.size for nbytes in before)])
    ends = [cost[place] for place in places if place.frame.chunk == wanted]
    return 0 if wanted in have else min(ends, default=math.inf)


def check(finder: ChainFinder, known: list[Location], have: set[ChunkId]) -> None:
    for wanted in map(chunk_id, range(CHUNKS)):
        chain = finder.chain(wanted)
        assert cheapest(known, have, wanted) == (math.inf if chain is None else chain.nbytes)
        if chain is None or not chain.frames:
            continue
        assert chain.nbytes == sum(place.frame.size for place in chain.frames)
        assert chain.frames[0].frame.base in {None, *have}
        assert chain.frames[-1].frame.chunk == wanted
        for before, place in pairwise(chain.frames):
            assert place.frame.base == before.frame.chunk
            assert place.frame.raw_size == before.frame.raw_size


def test_a_whole_frame_below_all_others_opens_chains_that_no_search_has_looked_at() -> None:
    table = FrameTable()
    known = [(0, None, 1000, 100), (1, 0, 10, 100), (1, 2, 20, 100), (2, 3, 10, 100)]
    table.add([location(n, frame) for n, frame in enumerate(known)])
    finder = ChainFinder(table)
    # No known chain to chunk 2 can have less than 1000 bytes, so its frame is not looked at.
    assert finder.cost(chunk_id(1)) == Cost(1010, 2)
    table.add([location(len(known), (3, None, 100, 100))])
    assert finder.cost(chunk_id(1)) == Cost(130, 3)


@given(st.lists(st.lists(frames, max_size=4), max_size=5), st.sets(st.integers(0, CHUNKS - 1)))
def test_the_cheapest_chain_is_found_after_any_additions_exclusions_and_searches(
    packs: list[list[tuple[int, int | None, int, int]]], have: set[int]
) -> None:
    table = FrameTable()
    here = set(map(chunk_id, have))
    alone, *helped = (ChainFinder(table, have) for have in ((), here, frozenset(here)))
    known: list[Location] = []
    for pack in packs:
        new = [location(len(known) + n, frame) for n, frame in enumerate(pack)]
        table.add(new)
        known += new
        check(alone, known, set())
        for finder in helped:
            check(finder, known, here)
    while known:
        table.exclude([known.pop()])
        check(alone, known, set())
        for finder in helped:
            check(finder, known, here)


class Watched(FrameTable):
    """A table that counts how often frames of a chunk are looked up."""

    looks = 0

    def frames(self, chunk: ChunkId) -> list[Location]:
        self.looks += 1
        return list(super().frames(chunk))


def long_id(n: int) -> ChunkId:
    return ChunkId(n.to_bytes(32, "big"))


def test_the_search_ignores_history_before_the_last_whole_chunks() -> None:
    """Every 50th step also has a whole frame, so chains that begin earlier cannot be cheaper."""
    table = Watched()
    for n in range(5000):
        base = None if n == 0 else long_id(n - 1)
        steps = [Frame(long_id(n), 100, 0, 2 * n, 1, bytes(8), base)]
        if n % 50 == 0:
            steps.append(Frame(long_id(n), 100, 0, 2 * n + 1, 60, bytes(8)))
        table.add([Location(PACK, frame) for frame in steps])
    chain = ChainFinder(table).chain(long_id(4999))
    assert chain is not None
    assert chain.nbytes == 60 + 49
    assert table.looks <= 2 * 110


def test_the_search_follows_no_more_differences_than_the_cheapest_chain_has() -> None:
    """Every 20th step is also stored as the difference from the first."""
    table = Watched()
    table.add([Location(PACK, Frame(long_id(0), 100, 0, 0, 60, bytes(8)))])
    for n in range(1, 1000):
        frames = [Frame(long_id(n), 100, 0, 2 * n, 1, bytes(8), long_id(n - 1))]
        if n % 20 == 0:
            frames.append(Frame(long_id(n), 100, 0, 2 * n + 1, 5, bytes(8), long_id(0)))
        table.add([Location(PACK, frame) for frame in frames])
    chain = ChainFinder(table).chain(long_id(999))
    assert chain is not None
    assert chain.nbytes == 19 + 5 + 60
    assert table.looks <= 2 * (19 + 5)


def test_a_chain_from_a_chunk_that_the_reader_has_may_be_longer_and_cheaper() -> None:
    table = FrameTable()
    table.add([Location(PACK, Frame(long_id(3), 100, 0, 3, 60, bytes(8)))])
    for n in range(1, 4):
        table.add([Location(PACK, Frame(long_id(n), 100, 0, n - 1, 5, bytes(8), long_id(n - 1)))])
    assert ChainFinder(table, {long_id(0)}).cost(long_id(3)) == Cost(15, 3)
    assert ChainFinder(table).cost(long_id(3)) == Cost(60, 1)


def test_each_further_step_of_a_chain_costs_a_constant_number_of_lookups() -> None:
    table = Watched()
    finder = ChainFinder(table)
    table.add([Location(PACK, Frame(long_id(0), 100, 0, 0, 60, bytes(8)))])
    for n in range(1, 50):
        table.add([Location(PACK, Frame(long_id(n), 100, 0, n, 1, bytes(8), long_id(n - 1)))])
        table.looks = 0
        chain = finder.chain(long_id(n))
        assert chain is not None
        assert len(chain.frames) == n + 1
        assert table.looks <= 3


def test_comparisons_grow_linearly_with_the_frames_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = 0
    equal = Location.__eq__

    def counted(self: Location, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(self, other)

    monkeypatch.setattr(Location, "__eq__", counted)
    table = FrameTable()
    places = [location(n, (0, None, 1 + n % 7, 100)) for n in range(2000)]
    table.add(places)
    table.add(places)
    assert list(table.frames(chunk_id(0))) == places
    table.exclude([places[3]])
    table.add(places)
    assert list(table.frames(chunk_id(0))) == places[:3] + places[4:]
    assert compared < 10 * len(places)


@pytest.mark.parametrize("have", [(), frozenset([long_id(10**9)])], ids=["nothing", "a chunk"])
@pytest.mark.parametrize("reason", ["no base", "circle", "too long", "other size"])
def test_chunks_without_a_chain_are_searched_once(
    reason: str, have: tuple[()] | frozenset[ChunkId]
) -> None:
    """A search that failed is remembered for all chunks on the way, for those that need them."""
    table, count = Watched(), 100
    length = MAX_LINKS + 50 if reason == "too long" else 500
    last = {"circle": long_id(0), "no base": long_id(10**6), "other size": long_id(10**7)}
    for n in range(length):
        base = last.get(reason) if n == length - 1 else long_id(n + 1)
        table.add([Location(PACK, Frame(long_id(n), 100, 0, n, 1, bytes(8), base))])
    table.add([Location(PACK, Frame(long_id(10**7), 99, 0, 0, 1, bytes(8)))])
    for n in range(count):
        frame = Frame(long_id(10**8 + n), 100, 0, n, 1, bytes(8), long_id(0))
        table.add([Location(PACK, frame)])
    finder = ChainFinder(table, have)
    for n in range(count):
        assert finder.chain(long_id(10**8 + n)) is None
        assert finder.cost(long_id(10**8 + n)) is None
    assert table.looks < 4 * length


def test_a_chain_from_a_chunk_that_the_reader_has_is_found_after_one_that_is_too_long() -> None:
    table, length = FrameTable(), MAX_LINKS + 50
    for n in range(length):
        base = None if n == length - 1 else long_id(n + 1)
        table.add([Location(PACK, Frame(long_id(n), 100, 0, n, 1, bytes(8), base))])
    table.add([Location(PACK, Frame(long_id(10**8), 100, 0, 0, 1, bytes(8), long_id(10**9)))])
    finder = ChainFinder(table, frozenset([long_id(10**9)]))
    assert finder.chain(long_id(0)) is None
    assert finder.cost(long_id(10**8)) == Cost(1, 1)


def test_a_chunk_with_many_frames_is_searched_once() -> None:
    """Each of its frames claims a different raw size."""
    table = Watched()
    table.add([location(n, (0, None, 1 + n, 100 + n)) for n in range(500)])
    finder = ChainFinder(table)
    for _ in range(50):
        chain = finder.chain(chunk_id(0))
        assert chain is not None
        assert chain.frames == (location(0, (0, None, 1, 100)),)
    assert table.looks < 700


def test_the_cost_is_that_of_the_cheapest_chain() -> None:
    table = FrameTable()
    table.add([Location(PACK, Frame(long_id(0), 100, 0, 0, 60, bytes(8)))])
    for n in range(1, 50):
        table.add([Location(PACK, Frame(long_id(n), 100, 0, n, 1, bytes(8), long_id(n - 1)))])
    finder = ChainFinder(table)
    assert finder.cost(long_id(49)) == Cost(60 + 49, 50)
    assert finder.cost(long_id(50)) is None


def test_an_exclusion_closes_only_the_chains_through_that_frame() -> None:
    """Each chunk of a chain has two frames, and the cheaper one is excluded."""
    table, length = Watched(), 500
    for n in range(length):
        base = long_id(n - 1) if n else None
        for size in (1, 2):
            table.add([Location(PACK, Frame(long_id(n), 100, 0, n, size, bytes(8), base))])
    finder = ChainFinder(table)
    assert finder.cost(long_id(length - 1)) == Cost(length, length)
    table.looks = 0
    for n in reversed(range(length)):
        chain = finder.chain(long_id(n))
        assert chain is not None
        assert chain.nbytes == n + 1
        table.exclude([chain.frames[-1]])
        chain = finder.chain(long_id(n))
        assert chain is not None
        assert chain.nbytes == n + 2
    assert finder.cost(long_id(length - 1)) == Cost(2 * length, length)
    assert table.looks < 10 * length
