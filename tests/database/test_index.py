"""The requests that the index makes to find chunks."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from casweights.database import index as index_module
from casweights.database.chains import ChainFinder
from casweights.database.frame_table import FrameTable
from casweights.database.index import ChunkIndex
from casweights.database.segment_writer import SegmentWriter
from casweights.errors import ErrorCode, NotFoundError
from casweights.format import names
from casweights.format.envelope import corrupt
from casweights.format.pack_table import PackTable
from casweights.stores.base import ObjectInfo
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.system.threads import Workers
from casweights.testing.counting import CountingStore
from tests.forged_chains import A, B, add_pack, chunk, chunk_id, create, difference, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.database.chain import Chain
    from casweights.format.pack import Location
    from casweights.ids import ChunkId

pytestmark = pytest.mark.usefixtures("packs_apart")


class Listed(WrapperStore):
    """Counts the listings of each folder, and objects whose sizes are requested."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.listings: Counter[str] = Counter()
        self.asked = 0

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.listings[prefix] += 1
        return super().list(prefix)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        self.asked += len(wanted)
        return super().sizes(wanted)


@pytest.fixture
def store() -> Listed:
    made = Listed()
    create(made)
    return made


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still, so that listings take no time."""
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(index_module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


ONE_LISTING = {names.PACKS: 1, names.SNAPSHOTS: 1, names.SEGMENTS: 1, names.ASIDE: 1}
MISSING = [chunk_id(chunk(number)) for number in range(1000, 1200)]


def test_many_missing_chunks_cost_one_listing(store: Listed) -> None:
    gone = [add_pack(MemoryStore(), [whole(chunk(number))]) for number in range(100)]
    index = ChunkIndex(store)
    index.learn(PackTable(gone, dict(zip(MISSING, gone * 2, strict=True))))
    store.listings.clear()
    for missing in MISSING:
        assert index.find_chain(missing) is None
    assert store.listings == ONE_LISTING
    assert store.asked <= len(gone)


def test_many_damaged_chunks_cost_one_listing_and_a_look_at_each(
    store: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged store may have a bad frame in every chunk of a version."""
    looks: list[int] = []
    look_up = ChunkIndex.look_up

    def counted(index: ChunkIndex, wanted: Iterable[ChunkId]) -> bool:
        looks.append(len(goal := list(wanted)))
        return look_up(index, goal)

    monkeypatch.setattr(ChunkIndex, "look_up", counted)
    chunks = [chunk(number) for number in range(200)]
    pack = add_pack(store, [whole(raw) for raw in chunks])
    index = ChunkIndex(store)
    index.learn(PackTable([pack], dict.fromkeys(map(chunk_id, chunks), pack)))
    store.listings.clear()
    for each in map(chunk_id, chunks):
        while found := index.find_chain(each):
            index.distrust({found.frames[0]: corrupt(names.pack_name(pack), "a bit flipped")})
    assert store.listings == ONE_LISTING
    assert sum(looks) <= 4 * len(chunks)


@pytest.mark.parametrize("because", ["expected", "distrusted", "late"])
def test_packs_are_listed_again_when_missing_chunks_may_have_been_added(
    store: Listed, clock: SimpleNamespace, because: str
) -> None:
    index = ChunkIndex(store)
    add_pack(store, [whole(A)])
    assert index.find_chain(chunk_id(B)) is None
    add_pack(store, [whole(B)])
    assert index.find_chain(chunk_id(B)) is None
    if because == "expected":
        index.expect()
    elif because == "distrusted":
        chain = index.find_chain(chunk_id(A))
        assert chain is not None
        gone = NotFoundError(ErrorCode.OBJECT_NOT_FOUND, "a pack is gone")
        index.distrust({chain.frames[0]: gone})
    else:
        clock.now += 2
    assert index.find_chain(chunk_id(B)) is not None


def test_packs_that_add_chains_to_known_chunks_are_read_in_growing_groups(
    store: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each read, the chains to earlier chunks must be searched again."""
    length, looks = 200, 0
    frames = FrameTable.all_frames

    def counted(table: FrameTable, wanted: ChunkId) -> Sequence[Location]:
        nonlocal looks
        looks += 1
        return frames(table, wanted)

    packs = [add_pack(store, [whole(chunk(0))])]
    for number in range(1, length):
        other = difference(chunk(0), chunk(10**6 + number))
        packs.append(add_pack(store, [difference(chunk(number), chunk(number - 1)), other]))
    index = ChunkIndex(store)
    ids = [chunk_id(chunk(number)) for number in range(length)]
    index.learn(PackTable(packs, dict(zip(ids, packs, strict=True))))
    monkeypatch.setattr(FrameTable, "all_frames", counted)
    for wanted in ids:
        assert index.find_chain(wanted) is not None
    assert looks < 40 * length


def test_finding_one_chunk_reads_one_pack(store: Listed) -> None:
    packs = [add_pack(store, [whole(chunk(number))]) for number in range(10)]
    counting = CountingStore(store)
    index = ChunkIndex(counting)
    ids = [chunk_id(chunk(number)) for number in range(10)]
    index.learn(PackTable(packs, dict(zip(ids, packs, strict=True))))
    assert index.find_chain(ids[5]) is not None
    assert len({name for name, _ in counting.reads}) == 1


class Claiming(Listed):
    """Knows the sizes of objects that are gone, as a bucket whose locators a snapshot has."""

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        return dict.fromkeys(wanted, 1000) | super().sizes(wanted)


@pytest.mark.parametrize("kind", [Listed, Claiming])
def test_chunks_of_packs_that_were_merged_are_found_without_a_listing_of_packs(
    kind: type[Listed],
) -> None:
    store = kind()
    create(store)
    for number in range(100):  # others, which nothing covers
        add_pack(store, [whole(chunk(1000 + number))])
    links = [whole(A), difference(B, A)]
    gone = [add_pack(MemoryStore(), [link]) for link in links]
    merged = add_pack(store, links)
    with Workers(2) as workers:
        info = ObjectInfo(names.pack_name(merged), store.size(names.pack_name(merged)))
        for _ in SegmentWriter(store, workers, ()).slices({merged: info}, [merged]):
            pass
    counting = CountingStore(store)
    index = ChunkIndex(counting)
    index.learn(PackTable(gone, dict(zip(map(chunk_id, (A, B)), gone, strict=True))))
    store.listings.clear()
    found = [index.find_chain(chunk_id(raw)) for raw in (B, A)]
    assert [[at.pack for at in made.frames] for made in found if made] == [[merged] * 2, [merged]]
    assert store.listings == {names.SEGMENTS: 1}
    read = {name for name, _ in counting.reads if name.startswith(names.PACKS)}
    assert read == {names.pack_name(merged)}


def test_packs_that_are_gone_are_looked_up_once_a_second(
    store: Listed, clock: SimpleNamespace
) -> None:
    gone = [add_pack(MemoryStore(), [whole(chunk(number))]) for number in range(10)]
    table = PackTable(gone, dict(zip(MISSING, gone, strict=False)))
    index = ChunkIndex(store)
    for _ in range(5):
        index.learn(table)
        index.prepare(MISSING)
    assert store.asked == len(gone)
    clock.now += 2
    index.learn(table)
    index.prepare(MISSING)
    assert store.asked == 2 * len(gone)


@pytest.mark.parametrize("packs", ["hinted", "listed"])
def test_a_search_uses_packs_that_another_thread_read_in_between(
    store: Listed, monkeypatch: pytest.MonkeyPatch, packs: str
) -> None:
    """The other thread reads them after the search for a chain and before the read of packs."""
    pack = add_pack(store, [whole(A)])
    index = ChunkIndex(store)
    if packs == "hinted":
        index.learn(PackTable([pack], {}))
    search, first = ChainFinder.chain, True

    def raced(finder: ChainFinder, wanted: ChunkId) -> Chain | None:
        nonlocal first
        found, first, is_first = search(finder, wanted), False, first
        if is_first:
            assert index.find_chain(wanted) is not None
            assert index.find_chain(chunk_id(B)) is None
        return found

    monkeypatch.setattr(ChainFinder, "chain", raced)
    assert index.find_chain(chunk_id(A)) is not None
    assert store.listings == ONE_LISTING
