"""Headers and lists of chunks: versions share them, and every verb keeps them readable."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import casweights
from casweights.config import StoreConfig
from casweights.database.writer import PackWriter
from casweights.errors import ErrorCode, IntegrityError
from casweights.format import names
from casweights.format.file_entry import PAGE_IDS
from casweights.format.hashing import blake3_256
from casweights.ids import ChunkId
from casweights.operations.differences import DifferenceEncoder
from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, history
from tests.lengths import choose, examples
from tests.operations.transfers import create, names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights import Repository, SnapshotId
    from casweights.database import Database
    from tests.histories import State

MAX_LINKS = 17  # log2 of a page, which has 128 KiB


def small_tensors(count: int) -> State:
    values = torch.arange(count * 8, dtype=torch.int32).view(count, 8)
    return {f"layers.{n:05}.weight": values[n].clone() for n in range(count)}


def written(objects: CountingStore) -> dict[str, int]:
    """Return the bytes that were written since the last reset, by folder."""
    found: dict[str, int] = {}
    for name, nbytes in objects.writes:
        folder = name.split("/")[0]
        found[folder] = found.get(folder, 0) + nbytes
    return found


def structure_packs(repo: Repository, version: SnapshotId) -> set[str]:
    """Return the packs that the structure of a version needs, according to its table."""
    table = repo._db.snapshots.load_stored(version).table
    return {names.pack_name(pack) for pack in table.packs[: table.structure]}


def chain_sizes(db: Database, chunk: ChunkId) -> list[int]:
    """Return the sizes of a chunk's frames, from the whole chunk on."""
    chain = db.index.find_chain(chunk)
    assert chain is not None
    assert chain.base is None
    return [location.frame.size for location in chain.frames]


def assert_short(sizes: Sequence[int]) -> None:
    assert len(sizes) <= MAX_LINKS
    assert all(2 * after <= before for before, after in pairwise(sizes))


def test_a_change_of_one_tensor_of_20000_writes_less_than_4_kb(objects: CountingStore) -> None:
    state = small_tensors(20_000)
    with casweights.open(objects, create=True) as repo:
        repo.commit(state)
        objects.reset()
        state["layers.10000.weight"][3] += 1
        version = repo.commit(state)
        assert len(repo._db.snapshots.load_stored(version.id).encoded_manifest) <= 1000
        assert sum(written(objects).values()) < 4000
    with casweights.open(objects) as fresh:
        assert_same_state(fresh.load(version), state)


def test_a_commit_of_the_same_state_writes_no_pack(
    objects: CountingStore, repo: Repository
) -> None:
    state = {**small_tensors(100), **next(history(1, 0.01))}
    first = repo.commit(state)
    objects.reset()
    second = repo.commit(state)
    assert written(objects).keys() == {"snapshots", "refs"}
    assert second.id != first.id
    assert second.structure() == first.structure()


def ids(seed: int) -> list[bytes]:
    return [blake3_256(bytes([seed]) + n.to_bytes(4, "little")) for n in range(PAGE_IDS)]


def changed(page: list[bytes], places: Sequence[int], version: int) -> list[bytes]:
    page = list(page)
    for place in places:
        page[place] = blake3_256(version.to_bytes(4, "little") + place.to_bytes(4, "little"))
    return page


def add_page(
    db: Database, encoder: DifferenceEncoder, page: bytes, base: ChunkId | None
) -> ChunkId:
    """Store a page in a pack of its own; return its ID."""
    chunk, writer = ChunkId(blake3_256(page)), PackWriter(db)
    if chunk not in db.index:
        writer.add(chunk, len(page), encoder.encode_structure(memoryview(page), base))
    writer.finish()
    writer.close()
    db.snapshots.structure.put(chunk, memoryview(page))
    return chunk


few = st.lists(st.integers(0, PAGE_IDS - 1), min_size=1, max_size=3)
some = st.tuples(st.integers(0, PAGE_IDS - 1), st.integers(1, 600)).map(
    lambda span: [n % PAGE_IDS for n in range(span[0], span[0] + span[1])]
)
steps = st.lists(few | some | st.just(list(range(PAGE_IDS))), min_size=1, max_size=12)


@pytest.mark.slow
@hypothesis.given(steps)
@hypothesis.example([[0], list(range(0, PAGE_IDS, 2))])
@hypothesis.settings(max_examples=examples(2))
def test_chains_of_pages_stay_short_over_hundreds_of_versions(pattern: list[list[int]]) -> None:
    """The changes of the first versions are repeated at other places, from version to version."""
    store = MemoryStore()
    with casweights.open(store, create=True, config=StoreConfig(chunk_size=CHUNK)) as repo:
        db = repo._db
        encoder = DifferenceEncoder(db.reader, db.index, db.cache, db.snapshots.structure, "auto")
        page, last, pages = ids(1), None, {}
        for version in range(choose(200, 300)):
            places = [(n + 37 * version) % PAGE_IDS for n in pattern[version % len(pattern)]]
            page = changed(page, places, version)
            last = add_page(db, encoder, b"".join(page), last)
            pages[last] = b"".join(page)
            assert_short(chain_sizes(db, last))
    with casweights.open(store) as fresh:
        for chunk, content in [*pages.items()][::-1]:
            assert fresh._db.reader.with_local().read(chunk, len(content)) == content


def steps_of_one_tensor(objects: CountingStore, versions: int) -> dict[SnapshotId, State]:
    """Commit versions of which each changes another tensor."""
    state, found = small_tensors(300), {}
    with casweights.open(objects) as repo:
        for n in range(versions):
            key = f"layers.{7 * n % 300:05}.weight"
            state = {**state, key: state[key] + 1}
            found[repo.commit(state).id] = state
    return found


def test_old_versions_load_and_their_structure_has_few_objects(objects: CountingStore) -> None:
    """One tensor changes at each step, so each page is the difference from one of a few others."""
    create(objects)
    found = steps_of_one_tensor(objects, 60)
    for version, expected in [*found.items()][::13]:
        with casweights.open(objects) as fresh:
            objects.reset()
            assert_same_state(fresh.load(version), expected)
            assert len(structure_packs(fresh, version)) <= MAX_LINKS
            for chunk in fresh.snapshot(version).structure():
                assert_short(chain_sizes(fresh._db, chunk))


@pytest.mark.parametrize("cheap", [False, True])
def test_log_reads_no_structure(objects: CountingStore, cheap: bool) -> None:
    create(objects)
    with casweights.open(objects) as repo:
        versions = [repo.commit(state) for state in history(5, 0.01)]
        repo.tag("v1", versions[2])
    objects.capabilities = Capabilities(
        exclusive_create=True, listing_lags=not cheap, cheap_reads=cheap
    )
    with casweights.open(objects) as repo:
        objects.reset()
        log = list(repo.log())
        assert [version.id for version in log] == [version.id for version in versions[::-1]]
        assert [version.number for version in log] == [5, 4, 3, 2, 1]
        assert [version.size for version in log] == [version.size for version in versions[::-1]]
        assert repo.snapshot("v1").id == repo.resolve("main~2")
        repo.branch("other", "v1")
        assert objects.read_bytes(names.PACKS) == 0
        assert sum(name.startswith(names.SNAPSHOTS) for name, _ in objects.reads) == 5


@pytest.mark.parametrize("history_too", [True, False])
def test_a_push_sends_no_structure_that_the_other_store_has(
    objects: CountingStore, history_too: bool
) -> None:
    """A version that repeats an older state needs no pack: header and list are there."""
    target = CountingStore(MemoryStore())
    create(objects)
    create(target)
    state = small_tensors(200)
    with casweights.open(objects) as here, casweights.open(target) as there:
        here.commit(state)
        here.push(there, history=history_too)
        here.commit({**state, "more": torch.ones(3)})
        if history_too:
            here.push(there)
        again = here.commit(state, message="again")
        target.reset()
        here.push(there, history=history_too, force=True)
        assert written(target).keys() == {"snapshots", "refs"}
        assert_same_state(there.load(again), state)


@pytest.mark.usefixtures("packs_apart")
def test_a_pull_downloads_only_the_change_of_a_list(objects: CountingStore) -> None:
    """The header, and the base of the list, are here."""
    target = CountingStore(MemoryStore())
    create(objects)
    create(target)
    state = small_tensors(400)
    with casweights.open(objects) as there:
        there.commit(state)
        with casweights.open(target) as here:
            here.pull(there)
        state = {**state, "layers.00017.weight": state["layers.00017.weight"] + 1}
        version = there.commit(state)
    objects.capabilities = Capabilities(exclusive_create=True, listing_lags=True, cheap_reads=False)
    with casweights.open(objects) as there, casweights.open(target) as here:
        objects.reset()
        target.reset()
        here.pull(there)
        assert written(target)["packs"] < 1000
        assert objects.read_bytes(names.PACKS) < 3 * written(target)["packs"]
        assert_same_state(here.load(version), state)


def test_structure_is_readable_with_short_chains_after_a_repack(objects: CountingStore) -> None:
    create(objects)
    found = steps_of_one_tensor(objects, 40)
    with casweights.open(objects) as repo:
        before = objects.inner
        old = names_of(before, names.PACKS)
        repo.repack()
        assert not old & names_of(before, names.PACKS)
    with casweights.open(objects) as fresh:
        assert fresh.verify().problems == ()
        for version, expected in found.items():
            assert_same_state(fresh.load(version), expected)
            for chunk in fresh.snapshot(version).structure():
                assert_short(chain_sizes(fresh._db, chunk))


def lose(objects: CountingStore, chunk: ChunkId) -> None:
    """Delete the packs with a chunk."""
    with casweights.open(objects) as repo:
        repo._db.index.load()
        for location in repo._db.index.frames(chunk):
            objects.delete(names.pack_name(location.pack))


@pytest.mark.usefixtures("packs_apart")
@pytest.mark.parametrize("kind", [0, 1], ids=["header", "page"])
@pytest.mark.parametrize("cheap", [False, True])
def test_a_lost_structure_chunk_costs_only_its_version_and_is_healed(
    objects: CountingStore, kind: int, cheap: bool
) -> None:
    create(objects)
    plain = small_tensors(200)
    extra = {**plain, "more": torch.ones(3)}
    with casweights.open(objects) as repo:
        first = repo.commit(plain)
        lost = repo.commit(extra)
        last = repo.commit(plain, message="back")
        first_header = len(first.files[0].raw_header or b"")
    chunk = list(lost.structure())[kind]
    assert chunk not in first.structure()
    lose(objects, chunk)
    objects.capabilities = Capabilities(
        exclusive_create=True, listing_lags=not cheap, cheap_reads=cheap
    )
    with casweights.open(objects) as repo:
        name = names.snapshot_name(lost.id)
        with pytest.raises(IntegrityError, match=name) as caught:
            repo.load(lost)
        assert caught.value.code is ErrorCode.MISSING_CHUNK
        for version in (first, last):
            assert_same_state(repo.load(version), plain)
        assert [version.id for version in repo.log()] == [last.id, lost.id, first.id]
        problems = [str(problem) for problem in repo.verify().problems]
        assert len(problems) == 1
        assert name in problems[0]
        assert "of its headers and lists of chunks" in problems[0]
        counted = {version.id: version for version in repo.stats().versions}
        assert counted.keys() == {first.id, lost.id, last.id}
        assert counted[first.id].nbytes == counted[first.id].new_bytes + first_header
        assert counted[lost.id].nbytes == lost.size
    with casweights.open(objects) as repo:
        again = repo.commit(extra, branch="again", message="healed")
    with casweights.open(objects) as repo:
        assert repo.verify().problems == ()
        for version, state in ((first, plain), (lost, extra), (last, plain), (again, extra)):
            assert_same_state(repo.load(version), state)


def test_a_commit_onto_a_version_with_lost_structure_works(objects: CountingStore) -> None:
    """The lost version has no chunks to make differences from; they are stored whole."""
    create(objects)
    states = list(history(3, 0.01))
    with casweights.open(objects) as repo:
        lost = repo.commit(states[0])
        repo.commit(states[1])
    for chunk in lost.structure():
        lose(objects, chunk)
    with casweights.open(objects) as repo:
        version = repo.commit(states[2])
        assert (version.number, version.parents) == (3, (repo.resolve("main~1"),))
        assert_same_state(repo.load(version), states[2])
