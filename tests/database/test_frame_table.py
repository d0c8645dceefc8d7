"""Frames that a table makes when they are asked for, and a table with all of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from casweights.database.frame_table import FrameTable
from casweights.database.packs import PackLocations
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.pack import Frame, FrameColumns, Location, encode_frames, parse_frames
from casweights.ids import ChunkId, PackId, Suspect
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import pytest

CHUNKS = [ChunkId(bytes([n]) * 32) for n in range(6)]
Rows = list[tuple[int, int | None]]  # for each frame its chunk and its base, by number


def pack_of(number: int, rows: Rows) -> PackLocations:
    frames, offset = [], PREFIX_SIZE
    for chunk, base in rows:
        base_id = None if base is None else CHUNKS[base]
        frames.append(Frame(CHUNKS[chunk], 64, 1, offset, 1 + chunk, bytes(8), base_id))
        offset += 1 + chunk
    return PackLocations(PackId(bytes([number]) * 32), parse_frames(encode_frames(frames)))


KINDS = [
    *("add pack", "add some", "add another", "look"),
    *("exclude", "doubt", "retain", "forget", "move", "read and move"),
]
ROWS = st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 5)), min_size=1, max_size=8)
PACKS = st.lists(ROWS, min_size=1, max_size=4).map(
    lambda packs: [pack_of(number, rows) for number, rows in enumerate(packs)]
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 3),
        st.integers(0, 7),
    ),
    max_size=12,
)


def frames_of(table: FrameTable, packs: Iterable[PackId]) -> set[Location]:
    """Return all frames of a table, excluded ones included."""
    whole = [at for pack in packs for at in table.pack(pack) or ()]
    return {*whole, *table.scattered()}


class Tables:
    """Two tables with the same history: one gets packs as columns, the other as lists."""

    def __init__(self, packs: Sequence[PackLocations]) -> None:
        self.packs = packs
        self.lazy, self.eager = FrameTable(), FrameTable()

    def both(self, call: Callable[[FrameTable], object]) -> None:
        call(self.lazy)
        call(self.eager)

    def step(self, kind: str, which: int, number: int) -> None:
        pack = self.packs[which % len(self.packs)]
        location = pack[number % len(pack)]
        chunk = CHUNKS[number % len(CHUNKS)]
        if kind == "add pack":
            self.lazy.add(pack)
            self.eager.add(list(pack))
        elif kind == "add some":
            self.both(lambda table: table.add([location]))
        elif kind == "add another":  # that the index of the pack does not list
            another = location._replace(frame=location.frame.at(1 << 20))
            self.both(lambda table: table.add([another]))
        elif kind == "look":
            self.lazy.frames(chunk)
        elif kind == "exclude":
            self.both(lambda table: table.exclude([location]))
        elif kind == "doubt":
            self.both(lambda table: table.doubt({Suspect(pack.pack, location.frame.offset)}))
        elif kind == "retain":
            self.both(lambda table: table.retain({pack.pack}))
        elif kind == "forget":
            self.both(lambda table: table.forget({chunk}, {pack.pack}))
        else:
            self.move(pack, is_read=kind == "read and move")

    def move(self, pack: PackLocations, *, is_read: bool) -> None:
        """Let another pack, perhaps a known one, take the place of this one, as merging does."""
        rows: Rows = [
            (CHUNKS.index(frame.chunk), None if frame.base is None else CHUNKS.index(frame.base))
            for frame in pack.frames
        ]
        merged = pack_of(100 + pack.pack[0], rows)
        if is_read:
            self.lazy.add(merged)
            self.eager.add(list(merged))
        self.both(lambda table: table.move(list(merged), {pack.pack}))

    def check(self) -> None:
        assert set(self.lazy) >= {c for c in self.eager if self.eager.all_frames(c)}
        for chunk in CHUNKS:
            for ask in (FrameTable.frames, FrameTable.all_frames):
                found = ask(self.lazy, chunk)
                assert len(found) == len(set(found)), "each frame once"
                assert set(found) == set(ask(self.eager, chunk))
            for pack in self.packs:
                known = self.lazy.has_frame(chunk, pack.pack)
                assert known == self.eager.has_frame(chunk, pack.pack)
        packs = {pack.pack for pack in self.packs} | self.lazy.packs()
        assert frames_of(self.lazy, packs) == frames_of(self.eager, packs)
        for table in (self.lazy, self.eager):
            used = (at.frame for chunk in CHUNKS for at in table.all_frames(chunk))
            for frame in used:
                assert frame.base is not None or frame.size >= table.least_whole(frame.raw_size)


@settings(max_examples=examples(150))
@given(PACKS, STEPS)
def test_frames_are_the_same_whether_they_are_made_at_once_or_when_asked_for(
    packs: list[PackLocations], steps: list[tuple[str, int, int]]
) -> None:
    tables = Tables(packs)
    for step in steps:
        tables.step(*step)
        tables.check()


@given(PACKS)
def test_a_pack_gives_its_frames_by_number_and_in_order(packs: list[PackLocations]) -> None:
    for pack in packs:
        every = [Location(pack.pack, frame) for frame in pack.frames]
        assert list(pack) == every == [pack[n] for n in range(len(pack))] == pack[:]


def test_looking_up_a_chunk_makes_its_frames_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = FrameColumns.at

    def counted(columns: FrameColumns, number: int) -> Frame:
        made.append(number)
        return make(columns, number)

    monkeypatch.setattr(FrameColumns, "at", counted)
    table = FrameTable()
    table.add(pack_of(0, [(n % 5, None) for n in range(500)] + [(5, 1)]))
    assert made == []
    assert len(table.frames(CHUNKS[5])) == 1
    assert made == [500]


def test_a_frame_that_moves_keeps_its_ids_in_memory() -> None:
    """A pack that was merged brings its own copy of each ID."""
    old, new = PackId(bytes(32)), PackId(bytes([1]) * 32)
    frames = [
        Frame(ChunkId(bytes([n]) * 32), 100, 4, 8, 90, bytes(8), ChunkId(bytes([n + 1]) * 32))
        for n in (2, 4)
    ]
    table = FrameTable()
    table.add([Location(old, frame) for frame in frames])
    other = frames[1]._replace(checksum=b"a frame!")
    [first] = parse_frames(encode_frames([frames[0]]))
    assert first.chunk is not frames[0].chunk
    table.move([Location(new, first.at(50)), Location(new, other)], {old})
    [moved] = table.frames(first.chunk)
    assert moved == Location(new, frames[0].at(50))
    assert (moved.frame.chunk, moved.frame.base) == (first.chunk, first.base)
    assert moved.frame.chunk is frames[0].chunk
    assert moved.frame.base is frames[0].base
    assert table.frames(other.chunk) == [Location(new, other)], "another frame of that chunk"
