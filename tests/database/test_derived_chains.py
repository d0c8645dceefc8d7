"""Chains that begin with a derived frame: compared with an exhaustive search."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.database.chain import Chain, Node
from casweights.database.chains import MAX_LINKS, ChainFinder
from casweights.database.derived_chains import DerivedFinder
from casweights.database.frame_table import FrameTable
from casweights.format.pack import Frame, Location
from casweights.format.roots import Root
from casweights.ids import ChunkId, PackId

PACK = PackId(bytes(32))
CHUNKS = 6
RAW_SIZES = [100, 100, 100, 200]


class Stored(NamedTuple):
    """A frame to store."""

    chunk: int
    base: int | None
    roots: list[tuple[int, int]]
    size: int
    raw_size: int


numbers = st.integers(0, CHUNKS - 1)
sizes = st.sampled_from(RAW_SIZES)
roots = st.lists(st.tuples(numbers, sizes), min_size=1, max_size=2)
frames = st.one_of(
    st.builds(Stored, numbers, st.none() | numbers, st.just([]), st.integers(1, 50), sizes),
    st.builds(Stored, numbers, st.none(), roots, st.integers(1, 50), sizes),
)


def chunk_id(n: int) -> ChunkId:
    return ChunkId(n.to_bytes(32, "big"))


def location(offset: int, frame: Stored) -> Location:
    base = None if frame.base is None else chunk_id(frame.base)
    own = tuple(Root(chunk_id(n), size) for n, size in frame.roots)
    fields = (chunk_id(frame.chunk), frame.raw_size, 0, offset, frame.size, bytes(8), base, own)
    return Location(PACK, Frame(*fields))


def costs(
    places: list[Location], have: set[ChunkId], begins: dict[int, float]
) -> dict[Node, float]:
    """Return the cost of the cheapest chain to each node, by going over all frames repeatedly.

    Args:
        places: The frames.
        have: The chunks that cost nothing.
        begins: What the beginning costs of each frame without a base that may begin a chain.
    """
    found: dict[Node, float] = {}
    for _ in range(len(places) + 1):
        for at in places:
            frame = at.frame
            before = begins.get(at.frame.offset, math.inf)
            if frame.base is not None:
                node = Node(frame.base, frame.raw_size)
                before = 0 if frame.base in have else found.get(node, math.inf)
            own = Node(frame.chunk, frame.raw_size)
            found[own] = min(found.get(own, math.inf), before + frame.size)
    return found


def cheapest(
    places: list[Location], have: set[ChunkId], roots_have: set[ChunkId], wanted: ChunkId
) -> float:
    """Return the cost of the chain that is to be found."""
    if wanted in have:
        return 0

    def best(found: dict[Node, float]) -> float:
        return min((cost for node, cost in found.items() if node.chunk == wanted), default=math.inf)

    whole = {at.frame.offset: 0.0 for at in places if not at.frame.bases}
    plain = best(costs(places, have, whole))
    if plain < math.inf:
        return plain
    of_roots = costs(places, roots_have, whole)
    derived = {
        at.frame.offset: sum(
            0 if root.chunk in roots_have else of_roots.get(Node(*root), math.inf)
            for root in at.frame.roots
        )
        for at in places
        if at.frame.roots
    }
    return best(costs(places, have, derived))


def check(
    finder: ChainFinder, known: list[Location], have: set[ChunkId], roots_have: set[ChunkId]
) -> None:
    for wanted in map(chunk_id, range(CHUNKS)):
        chain = finder.chain(wanted)
        cost = math.inf if chain is None else chain.nbytes
        assert cost == cheapest(known, have, roots_have, wanted)
        if chain is not None and chain.frames:
            check_chain(chain, wanted, have)


def check_chain(chain: Chain, wanted: ChunkId, have: set[ChunkId]) -> None:
    first = chain.frames[0].frame
    assert first.base in {None, *have}
    assert chain.frames[-1].frame.chunk == wanted
    for before, at in pairwise(chain.frames):
        assert at.frame.base == before.frame.chunk
        assert at.frame.raw_size == before.frame.raw_size
    assert len(chain.roots) == len(first.roots)
    for root, its_chain in zip(first.roots, chain.roots, strict=True):
        assert not its_chain.roots
        if its_chain.links:
            assert its_chain.frames[-1].frame.raw_size == root.raw_size
            check_chain(its_chain, root.chunk, have)
    walked = [*chain.back()]
    assert sum(at.frame.size for at in walked) == chain.nbytes
    assert len(walked) == chain.links


@given(st.lists(st.lists(frames, max_size=5), max_size=5), st.sets(numbers))
def test_a_derived_chain_is_found_where_no_other_leads_to_a_chunk(
    packs: list[list[Stored]], have: set[int]
) -> None:
    """It is the cheapest, after any additions, exclusions and searches."""
    table, here = FrameTable(), set(map(chunk_id, have))
    alone = DerivedFinder(table)
    helped, half = DerivedFinder(table, here), DerivedFinder(table, here, for_roots=alone)
    known: list[Location] = []

    def check_all() -> None:
        check(alone, known, set(), set())
        check(helped, known, here, here)
        check(half, known, here, set())

    for pack in packs:
        new = [location(len(known) + n, frame) for n, frame in enumerate(pack)]
        table.add(new)
        known += new
        check_all()
    while known:
        table.exclude([known.pop()])
        check_all()


def line(first: int, links: int, base: int | None = None) -> list[Stored]:
    """Return a whole chunk, or a difference from one, and differences onto it."""
    bases = [base, *range(first, first + links - 1)]
    return [Stored(first + n, b, [], 1, 100) for n, b in enumerate(bases)]


def added(stored: list[Stored]) -> DerivedFinder:
    table = FrameTable()
    table.add([location(n, frame) for n, frame in enumerate(stored)])
    return DerivedFinder(table)


@pytest.mark.parametrize("over", [0, 1])
def test_the_frames_of_roots_count_against_the_longest_chain(over: int) -> None:
    half = MAX_LINKS // 2
    stored = [*line(0, half), *line(5000, half - 1 + over)]
    last = 5000 + half - 2 + over
    finder = added([*stored, Stored(9000, None, [(half - 1, 100), (last, 100)], 1, 100)])
    chain = finder.chain(chunk_id(9000))
    assert (chain is None) == bool(over)
    assert chain is None or chain.links == MAX_LINKS


def test_a_root_with_nothing_but_a_derived_frame_is_not_used() -> None:
    finder = added([*line(0, 1), Stored(1, None, [(0, 100)], 1, 100)])
    assert finder.chain(chunk_id(1)) is not None
    nested = [*line(0, 1), Stored(1, None, [(0, 100)], 1, 100), *line(2, 3, base=1)]
    finder = added([*nested, Stored(9, None, [(4, 100)], 1, 100)])
    assert finder.chain(chunk_id(4)) is not None
    assert finder.chain(chunk_id(9)) is None


@pytest.mark.parametrize("forgets", [False, True])
def test_a_chain_is_found_when_the_frame_of_its_root_comes_later(forgets: bool) -> None:
    made, root = Stored(1, None, [(0, 100)], 1, 100), Stored(0, None, [], 1, 100)
    table = FrameTable()
    table.add([location(1, made)])
    finder = DerivedFinder(table)
    assert finder.chain(chunk_id(1)) is None
    if forgets:
        table.forget({chunk_id(1)}, ())
    table.add([location(0, root)])
    assert finder.chain(chunk_id(1)) is not None


def test_chunks_that_are_made_from_each_other_are_not_found() -> None:
    circle = [Stored(0, None, [(1, 100)], 1, 100), Stored(1, None, [(0, 100)], 1, 100)]
    finder = added([*circle, Stored(2, None, [(2, 100)], 1, 100), *line(3, 2, base=2)])
    assert [finder.chain(chunk_id(n)) for n in range(5)] == [None] * 5


def test_a_walk_yields_the_frames_of_shared_roots_about_once() -> None:
    stored = [*line(0, 50)]
    stored += [Stored(100 + n, None, [(49, 100), (30, 100)], 1, 100) for n in range(10)]
    finder, seen = added(stored), set[Node]()
    walked = []
    for n in range(10):
        chain = finder.chain(chunk_id(100 + n))
        assert chain is not None
        walked += [*chain.back(seen)]
    assert len(walked) <= 50 + 3 * 10


def test_missing_chunks_are_not_searched_again_and_again() -> None:
    class Watched(FrameTable):
        looks = 0

        def frames(self, chunk: ChunkId) -> list[Location]:
            self.looks += 1
            return list(super().frames(chunk))

    table, count = Watched(), 300
    lost = [*line(0, 1), Stored(1, None, [(0, 100)], 1, 100), *line(2, count, base=9999)]
    table.add([location(n, frame) for n, frame in enumerate(lost)])
    finder = DerivedFinder(table)
    assert finder.chain(chunk_id(1)) is not None
    assert all(finder.chain(chunk_id(2 + n)) is None for n in range(count))
    assert table.looks < 10 * count


def test_what_a_chain_takes_is_shared_among_the_neighbours_of_its_chunk() -> None:
    stored = [Stored(0, None, [], 80, 100), Stored(1, 0, [], 20, 100), Stored(2, None, [], 60, 100)]
    stored.append(Stored(3, None, [(1, 100), (2, 100)], 7, 50))
    stored.append(Stored(4, 3, [], 5, 50))
    chain = added(stored).chain(chunk_id(4))
    assert chain is not None
    assert chain.nbytes == 80 + 20 + 60 + 7 + 5
    assert chain.whole_size == (80 + 60) / 4
    assert chain.read_size == (80 + 20 + 60) / 4 + 7 + 5
