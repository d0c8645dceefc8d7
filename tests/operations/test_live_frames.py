"""Live frames as rows, and the same choices made with dicts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casweights import Keep
from casweights.database.index import ChunkIndex
from casweights.format import names
from casweights.format.codecs import Encoding
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.hashing import checksum
from casweights.format.pack import Frame, Location, OpenPack
from casweights.ids import ChunkId, PackId, Suspect
from casweights.operations.live_frames import LiveFrames, is_cheap
from casweights.stores.memory import MemoryStore
from tests.ages import age
from tests.lengths import examples
from tests.operations.collecting import LONG, abandon, commit_all, open_repo

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from casweights.database.packs import PackContents

CHUNKS = [ChunkId(bytes([n]) * 32) for n in range(6)]
FRAMES = st.tuples(
    st.integers(0, 5), st.none() | st.integers(0, 5), st.integers(1, 60), st.integers(0, 1)
)
PACKS = st.lists(
    st.tuples(st.integers(0, 2), st.lists(FRAMES, min_size=1, max_size=6)), min_size=1, max_size=5
)


class PlainFrames:
    """Chooses live frames as `LiveFrames` does, and keeps all of them in dicts."""

    def __init__(self, index: ChunkIndex, packs: Mapping[str, PackContents]) -> None:
        self.index = index
        self.packs = packs
        self.own: dict[ChunkId, Location] = {}
        self.nbytes: Counter[str] = Counter()

    def follow(self, chunks: Iterable[ChunkId], kept: set[ChunkId]) -> list[ChunkId]:
        finder = self.index.finder_within(kept)
        lost = []
        for chunk in chunks:
            if chunk in self.own:
                continue
            chain = finder.chain(chunk)
            if chain is None or not is_cheap(chain):
                other = self.index.find_chain(chunk)
                if other is not None and (chain is None or other.nbytes < chain.nbytes):
                    chain = other
            if chain is None:
                lost.append(chunk)
                continue
            for location in chain.back():
                if location.frame.chunk in self.own:
                    break
                self.take(location)
        return lost

    def take(self, location: Location) -> None:
        chunk = location.frame.chunk
        copies = [
            at
            for at in self.index.frames(chunk)
            if at.frame.content == location.frame.content and not self.index.doubts(at)
        ]
        best = max(copies, key=self.rank) if len(copies) > 1 else location
        self.own[chunk] = best
        self.nbytes[names.pack_name(best.pack)] += best.frame.size

    def rank(self, location: Location) -> tuple[int, bytes]:
        pack = self.packs.get(names.pack_name(location.pack))
        return -1 if pack is None else pack.generation, location.pack


def check_same(live: LiveFrames, plain: PlainFrames, chunks: Iterable[ChunkId]) -> None:
    """Compare all that live frames say with dicts."""
    assert live.nbytes == plain.nbytes
    assert Counter(live) == Counter(plain.own.values())
    for chunk in chunks:
        own = plain.own.get(chunk)
        assert live.rebuilds(chunk) == (own is not None)
        if own is not None:
            assert live.own(chunk) == own
        for location in live._index.frames(chunk):
            assert (location in live) == (location == own)


def sealed(generation: int, rows: list[tuple[int, int | None, int, int]]) -> OpenPack:
    frames, payloads, offset = [], [], PREFIX_SIZE
    for chunk, base, size, fill in rows:
        payload = bytes([fill]) * size
        kind = Encoding.RAW if base is None else Encoding.SPARSE
        base_id = None if base is None else CHUNKS[base]
        check = checksum(payload)
        frames.append(Frame(CHUNKS[chunk], 64, kind, offset, size, check, base_id))
        payloads.append(payload)
        offset += size
    return OpenPack(frames, payloads)


@settings(max_examples=examples(200))
@given(
    PACKS,
    st.lists(st.integers(0, 5), unique=True),
    st.permutations(range(6)),
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 5))),
    st.none() | FRAMES,
)
def test_the_live_frames_are_those_that_dicts_would_hold(
    packs: list[tuple[int, list[tuple[int, int | None, int, int]]]],
    kept: list[int],
    order: list[int],
    doubted: set[tuple[int, int]],
    added: tuple[int, int | None, int, int] | None,
) -> None:
    store, made = MemoryStore(), []
    for generation, rows in packs:
        pack = sealed(generation, rows).seal(generation)
        store.put(pack.name, pack.parts)
        made.append(pack)
    index = ChunkIndex(store)
    index.load(exact=True)
    places = {pack.info.name: pack for pack in index.contents()}
    if added is not None:  # a frame that no index lists
        index.add_frames(
            Location(PackId(b"\xff" * 32), frame) for frame in sealed(0, [added]).frames
        )
    suspects = {
        Suspect(made[pack].pack, made[pack].frames[number].offset)
        for pack, number in doubted
        if pack < len(made) and number < len(made[pack].frames)
    }
    index.heed(suspects)
    live, plain = LiveFrames(index, index.rows(), places), PlainFrames(index, places)
    wanted = {CHUNKS[n] for n in kept}
    for part in (order[:3], order[3:]):
        chunks = [CHUNKS[n] for n in part if n in kept]
        assert live.follow(chunks, wanted) == plain.follow(chunks, wanted)
        check_same(live, plain, CHUNKS)


@pytest.mark.parametrize("is_folded", [True, False])
def test_collections_of_a_store_choose_the_frames_that_dicts_would_hold(
    is_folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins: WeakKeyDictionary[LiveFrames, PlainFrames] = WeakKeyDictionary()
    compared: list[int] = []
    follow = LiveFrames.follow

    def both(live: LiveFrames, chunks: Iterable[ChunkId], kept: Collection[ChunkId]) -> object:
        chunks = list(chunks)
        plain = twins.setdefault(live, PlainFrames(live._index, live.packs))
        plain.packs = live.packs
        lost = follow(live, chunks, kept)
        assert lost == plain.follow(chunks, set(kept))
        check_same(live, plain, {*chunks, *plain.own})
        compared.append(len(plain.own))
        return lost

    monkeypatch.setattr(LiveFrames, "follow", both)
    objects = MemoryStore()
    with open_repo(objects, create=True) as repo:
        commit_all(repo, "main", 12)
        abandon(repo, objects)
        if is_folded:
            repo.expire(Keep(every=5, last=1), apply=True)
        repo.repack()
        done = []
        for _ in range(3):
            age(objects, LONG)
            done.append(repo.gc(apply=True))
        assert any(one.objects for one in done)
        assert max(compared) > 20
        assert repo.verify().problems == ()
