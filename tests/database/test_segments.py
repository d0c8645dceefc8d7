"""Searches by segments find what the indexes of all packs would show, whatever the segments are."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.database import pack_indexes, segment_writer, segments
from casweights.database.index import ChunkIndex
from casweights.database.segment_writer import SegmentWriter
from casweights.database.segments import list_segments, open_segments
from casweights.errors import CasweightsError
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.segment import SegmentBuilder
from casweights.format.segment_rows import in_order, make_rows
from casweights.ids import ChunkId, PackId
from casweights.stores.memory import MemoryStore
from casweights.system.threads import Workers
from casweights.testing.counting import CountingStore
from casweights.testing.faults import flip_bit
from tests.forged_chains import add_pack, chunk, chunk_id, create, difference, whole
from tests.lengths import spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.stores.base import ObjectInfo, ObjectStore

PACKS, A_PACK = 12, 5  # packs, and chunks of each


@pytest.fixture(params=["whole", "by ranges"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small segments and packs are kept whole; or all are read like large ones."""
    if request.param == "by ranges":
        monkeypatch.setattr(segments, "_SMALL_BYTES", 64)
        monkeypatch.setattr(pack_indexes, "_WHOLE_FRAMES", 0)
    return str(request.param)


def fill(store: ObjectStore, packs: int = PACKS) -> list[ChunkId]:
    """Add packs whose chunks build on those of the pack before; return all chunks."""
    create(store)
    found: list[ChunkId] = []
    for pack in range(packs):
        links = []
        for n in range(A_PACK):
            number = pack * A_PACK + n
            raw = chunk(number)
            links.append(difference(raw, chunk(number - A_PACK)) if pack % 4 else whole(raw))
            found.append(chunk_id(raw))
        add_pack(store, links)
    return found


def write(store: ObjectStore, packs: Sequence[PackId] | None = None) -> SegmentWriter:
    """Cover packs, by default all."""
    every = pack_infos(store)
    with Workers(2) as workers:
        writer = SegmentWriter(store, workers, ())
        run(writer, every, every if packs is None else packs)
    return writer


def run(writer: SegmentWriter, packs: dict[PackId, ObjectInfo], old: Iterable[PackId]) -> None:
    for _ in writer.slices(packs, old):
        pass


def pack_infos(store: ObjectStore) -> dict[PackId, ObjectInfo]:
    return {names.pack_of(info.name): info for info in store.list(names.PACKS)}


def searched(store: ObjectStore, chunks: Sequence[ChunkId]) -> ChunkIndex:
    """Return an index after a search, which knows as much as one that has read everything."""
    index, loaded = ChunkIndex(store), ChunkIndex(store)
    index.search(chunks)
    loaded.load()
    assert index.having(chunks) == loaded.having(chunks)
    return index


def put(store: ObjectStore, rows: list[bytes], packs: Sequence[PackId]) -> str:
    builder = SegmentBuilder(packs, 0, 0)
    builder.add(in_order(rows))
    index, content = builder.finish()
    store.put(index.name, content)
    return index.name


def only(store: ObjectStore) -> str:
    [info] = list_segments(store)
    return info.name


@pytest.mark.parametrize("covered", [0, 1, PACKS // 2, PACKS])
def test_a_search_finds_what_a_load_finds(reading: str, covered: int) -> None:
    store = MemoryStore()
    chunks = fill(store)
    write(store, list(pack_infos(store))[:covered])
    for wanted in (chunks, chunks[-1:], chunks[7:9], [chunk_id(b"no such chunk"), chunks[20]]):
        searched(store, wanted)


def test_a_look_up_reads_some_rows_and_the_packs_that_have_the_chunk(reading: str) -> None:
    store = CountingStore(MemoryStore())
    chunks = fill(store, 1 + 4 * 40)
    write(store)
    store.reads.clear()
    index = ChunkIndex(store)
    index.search(chunks[-1:])
    assert chunks[-1] in index
    read = {name for name, _ in store.reads if name.startswith(names.PACKS)}
    assert len(read) == 1  # its chunks are stored whole
    if reading == "by ranges":
        sizes = [nbytes for name, nbytes in store.reads if name.startswith(names.SEGMENTS)]
        assert sum(sizes) < 40 * 1024 > store.size(only(store))


def test_the_frames_that_a_chunk_needs_are_kept_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pack_indexes, "_WHOLE_FRAMES", 0)
    store = MemoryStore()
    chunks = fill(store)
    write(store)
    index = ChunkIndex(store)
    index.search(chunks[-1:])  # of the fourth pack after one of whole chunks
    assert set(index) == {chunks[-1 - n * A_PACK] for n in range(4)}


@pytest.mark.parametrize("reading", ["whole", "by ranges"], indirect=True)
def test_flipping_any_bit_costs_only_the_use_of_the_segment(reading: str) -> None:
    store = MemoryStore()
    chunks = fill(store, 2)
    write(store)
    name = only(store)
    data = store.get(name)
    loaded = ChunkIndex(store)
    loaded.load()
    for bit in spread(range(8 * len(data)), 600, reading):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        store.delete(name)
        store.put(name, [damaged])
        index = ChunkIndex(store)
        index.search(chunks)
        assert index.having(chunks) == loaded.having(chunks) == chunks
        is_read = bit >= 8 * PREFIX_SIZE
        assert list(index.ignored_segments) == [name] * is_read


def test_verify_names_a_segment_with_any_damaged_byte() -> None:
    store = MemoryStore()
    fill(store, 3)
    write(store)
    name = only(store)
    with casweights.open(store) as repo:
        for place in spread(range(store.size(name)), 100):
            flip_bit(store, name, place)
            [problem] = repo.verify().problems
            assert name in str(problem)
            flip_bit(store, name, place)
        assert repo.verify().problems == ()
    assert not list(store.list(names.DAMAGED))


FORGED = ["no rows", "wrong packs", "lost packs", "number of no pack", "no segment", "empty"]


def forge(store: ObjectStore, kind: str, chunks: Sequence[ChunkId]) -> str:
    packs = list(pack_infos(store))
    if kind == "no rows":
        return put(store, [], packs)
    if kind == "wrong packs":
        return put(store, [make_rows([c], n % len(packs)) for n, c in enumerate(chunks)], packs)
    if kind == "lost packs":
        return put(store, [make_rows([c], 0) for c in chunks], [PackId(bytes(32)), *packs])
    if kind == "number of no pack":
        name = put(store, [make_rows([c], 0) for c in chunks], packs)
        data = bytearray(store.get(name))
        data[8 + 16] = 200
        store.delete(name)
        name = names.SEGMENTS + "ab" * 32
        store.put(name, [data])
        return name
    name = names.SEGMENTS + "cd" * 32
    store.put(name, [b"" if kind == "empty" else b"casw" * 100])
    return name


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_segment_costs_only_time(reading: str, kind: str) -> None:
    """A search may miss chunks then, but a reader finds them."""
    store = MemoryStore()
    chunks = fill(store)
    forge(store, kind, chunks)
    for wanted in (chunks[-1], chunks[0]):
        index = ChunkIndex(store)
        assert index.find_chain(wanted) is not None


@pytest.mark.parametrize("kind", FORGED)
def test_verify_names_a_forged_segment_and_maintenance_replaces_it(kind: str) -> None:
    store = MemoryStore()
    chunks = fill(store)
    name = forge(store, kind, chunks)
    with casweights.open(store) as repo:
        found = [str(problem) for problem in repo.verify().problems]
        assert len(found) == 1
        assert name in found[0]
        repo.maintain()
        assert not store.exists(name)
        assert repo.verify().problems == ()
    assert not list(store.list(names.DAMAGED))


def test_verify_is_content_with_sound_segments_and_with_those_of_lost_packs() -> None:
    store = MemoryStore()
    fill(store)
    write(store)
    store.delete(names.pack_name(list(pack_infos(store))[-1]))
    with casweights.open(store) as repo:
        problems = [str(problem) for problem in repo.verify().problems]
    assert not [problem for problem in problems if names.SEGMENTS in problem]


def test_objects_with_other_names_in_the_folder_are_left_alone() -> None:
    store = MemoryStore()
    chunks = fill(store)
    store.put(f"{names.SEGMENTS}notes.txt", [b"mine"])
    write(store)
    searched(store, chunks)
    with casweights.open(store) as repo:
        [problem] = repo.verify().problems
        assert "notes.txt is not an object" in str(problem)
    assert store.get(f"{names.SEGMENTS}notes.txt") == b"mine"


def test_rows_are_the_same_whether_a_merge_is_divided_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segment_writer, "_SMALL_LEVEL", -1)
    merged = []
    for rows in (1 << 18, 1 << 8):
        monkeypatch.setattr(segment_writer, "_SLICE_ROWS", rows)
        store = MemoryStore()
        fill(store, 0)
        for n in range(8):
            add_pack(store, [whole(chunk(1000 * n + i)) for i in range(200)])
            write(store, list(set(pack_infos(store))))
        merged.append({info.name: store.get(info.name) for info in list_segments(store)})
    assert merged[0] == merged[1]
    assert [s.index.generation for s in opened(store)] == [1]


def opened(store: ObjectStore) -> list[segments.Segment]:
    found = [segment for _, segment in open_segments(store, list_segments(store))]
    assert not [segment for segment in found if isinstance(segment, CasweightsError)]
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("runs", [8, 64, 200])
def test_each_row_is_written_again_as_often_as_the_levels_say(
    runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_writer, "_SMALL_LEVEL", -1)
    store, written = MemoryStore(), 0
    chunks = fill(store, 0)
    with Workers(2) as workers:
        for n in range(runs):
            add_pack(store, [whole(chunk(n))])
            chunks.append(chunk_id(chunk(n)))
            every = pack_infos(store)
            before = {info.name for info in list_segments(store)}
            run(SegmentWriter(store, workers, ()), every, every)
            new = [s for s in opened(store) if s.info.name not in before]
            written += sum(segment.index.rows for segment in new)
    levels = len(f"{runs:o}")  # the logarithm of the number of runs, to the base 8
    assert written <= levels * runs
    assert len(opened(store)) <= 7 * levels
    assert max(s.index.generation for s in opened(store)) == levels - 1
    searched(store, chunks)


def test_small_segments_become_one_each_time() -> None:
    """Each one costs a reader a request, and their rows are few."""
    store, number = MemoryStore(), 0
    chunks = fill(store, 0)
    for size in [100] * 60 + [3000] * 8:
        raw = [chunk(number := number + 1) for _ in range(size)]
        chunks += map(chunk_id, raw)
        add_pack(store, list(map(whole, raw)))
        write(store)
        rows = [segment.index.rows for segment in opened(store)]
        assert len([each for each in rows if each < 8**4]) <= 1
        assert len(rows) <= 1 + 7
    searched(store, chunks[::100])


def test_a_row_takes_little_memory_while_segments_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A publisher writes them between its steps, and what it took once, it keeps."""
    monkeypatch.setattr(segment_writer, "_FAN_IN", 2)
    packs, a_pack = 12, 3000
    store = MemoryStore()
    fill(store, 0)
    for pack in range(packs):
        add_pack(store, [whole(chunk(pack * a_pack + n)) for n in range(a_pack)])
    infos = pack_infos(store)
    peaks = []
    with Workers(1) as workers:
        for covered in (list(infos)[: packs // 2], list(infos)):  # the second time, two are merged
            tracemalloc.start()
            run(SegmentWriter(store, workers, ()), infos, covered)
            peaks.append(tracemalloc.get_traced_memory()[1] / (a_pack * packs / 2))
            tracemalloc.stop()
            assert len(opened(store)) == 1
    assert max(peaks) < 190


def test_rows_over_a_network_are_read_in_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_SMALL_BYTES", 64)
    store = CountingStore(MemoryStore())
    chunks = fill(store, 0)
    raw = [chunk(n) for n in range(6000)]
    chunks += map(chunk_id, raw)
    add_pack(store, list(map(whole, raw)))
    write(store)
    reads = {}
    for is_cheap in (True, False):
        store.capabilities = replace(store.capabilities, cheap_reads=is_cheap)
        store.reset()
        ChunkIndex(store).search(chunks[::200])
        reads[is_cheap] = [n for name, n in store.reads if name.startswith(names.SEGMENTS)]
    assert len(reads[False]) <= 3 < 6 <= len(reads[True])
    assert sum(reads[False]) <= store.size(only(store))


def test_segments_of_lost_packs_are_dropped_and_thin_ones_written_again() -> None:
    store = MemoryStore()
    chunks = fill(store)
    write(store)
    every = list(pack_infos(store))
    for pack in every[: PACKS // 2 + 1]:
        store.delete(names.pack_name(pack))
    write(store)
    assert [len(s.index.packs) for s in opened(store)] == [PACKS - PACKS // 2 - 1]
    searched(store, chunks)
    for pack in every[PACKS // 2 + 1 :]:
        store.delete(names.pack_name(pack))
    write(store)
    assert not opened(store)


def test_a_segment_that_others_cover_is_deleted() -> None:
    store = MemoryStore()
    fill(store)
    packs = list(pack_infos(store))
    write(store, packs[:3])
    first = only(store)
    copy = store.get(first)
    write(store, packs[:3])
    assert only(store) == first
    store.delete(first)
    write(store, packs[:5])
    store.put(first, [copy])
    write(store, packs[:5])
    assert only(store) != first


def chains(index: ChunkIndex, chunks: Sequence[ChunkId]) -> Iterator[bool]:
    return (index.find_chain(chunk) is not None for chunk in chunks)


def test_a_handle_survives_the_loss_of_segments_and_packs_that_it_knows(reading: str) -> None:
    store = MemoryStore()
    chunks = fill(store)
    write(store)
    index = ChunkIndex(store)
    index.search(chunks[:1])
    store.delete(only(store))
    assert all(chains(index, chunks))
    write(store)
    index.reconsider()
    for info in list_segments(store):
        flip_bit(store, info.name, 9)
    assert all(chains(ChunkIndex(store), chunks))
