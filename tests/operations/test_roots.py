"""What chunks are made from stays, and stays usable, wherever frames are moved or written again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import Keep
from casweights.config import MiB
from casweights.format.codecs import Encoding
from casweights.operations.slices import ChunkSlice
from casweights.stores.memory import MemoryStore
from casweights.stores.readahead import ReadaheadStore
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.ages import DAY, GRACE, age
from tests.findings import Remote
from tests.histories import check_versions
from tests.operations.resizing import (
    add_pack,
    embedding,
    encode,
    encodings,
    make_encoder,
    moved,
    raw_of,
)
from tests.operations.transfers import create, push_all

if TYPE_CHECKING:
    from casweights import Repository
    from casweights.testing import CountingStore


@pytest.mark.parametrize("history", [True, False], ids=["history", "shallow"])
def test_a_push_takes_the_roots_along(
    objects: CountingStore, repo: Repository, history: bool
) -> None:
    repo.commit({"emb": embedding(100)})
    version = repo.commit({"emb": embedding(60)}).id
    target = MemoryStore()
    create(target)
    with casweights.open(target) as other:
        repo.push(other, ["main"], history=history)
    check_versions(target, {version: {"emb": embedding(60)}})


def test_a_push_brings_roots_that_the_target_has_derived_itself() -> None:
    """There, the root is made from another chunk, and so of no use as a root."""
    cut, smaller = {"w": embedding(60)}, {"w": embedding(30)}
    third, source, target = MemoryStore(), MemoryStore(), MemoryStore()
    for store in (third, source, target):
        create(store)
    with casweights.open(third) as repo:
        found = {repo.commit(state).id: state for state in ({"w": embedding(100)}, cut)}
        assert encodings(repo) == [Encoding.DERIVED]
    with casweights.open(source) as repo:
        repo.commit(cut, branch="own")
    for store in (source, target):
        push_all(third, store)
    with casweights.open(source) as repo:
        repo.database.index.load()
        found[repo.commit(smaller).id] = smaller
        assert encodings(repo) == [Encoding.DERIVED]
    push_all(source, target, "main")
    check_versions(target, found)


def test_a_root_is_kept_plain_by_a_repack(repo: Repository) -> None:
    """Another client may make a chunk from it at the same time."""
    repo.commit({"w": embedding(100)})
    version = repo.commit({"w": embedding(60)})
    [(chunk, piece)] = list(version.pieces())
    raw = raw_of(embedding(60))
    add_pack(repo, chunk, raw, make_encoder(repo).encode(raw, piece, None))
    repo.repack()
    repo.database.index.load()
    assert repo.database.index.plain_chain(chunk) is not None


def test_a_derived_chunk_stays_derived_in_a_repack(repo: Repository) -> None:
    repo.commit({"w": embedding(100)})
    repo.commit({"w": embedding(60)})
    assert repo.repack().nbytes < 60_000
    assert encodings(repo) == [Encoding.DERIVED]


def test_a_root_is_kept_plain_by_a_collection(objects: CountingStore) -> None:
    """Its plain chain leads through a chunk that no version needs."""
    create(objects)
    with casweights.open(objects) as repo:
        repo.commit({"w": embedding(100)})
        version = repo.commit({"w": embedding(60)})
        [(chunk, piece)] = list(version.pieces())
        unneeded, raw = raw_of(moved(embedding(60))), raw_of(embedding(60))
        encoder, base = make_encoder(repo), repo.database.hasher(unneeded)
        add_pack(repo, base, unneeded, encoder.encode(unneeded, piece, None))
        add_pack(repo, chunk, raw, encoder.encode(raw, piece, base))
    for _ in range(3):
        age(objects.inner, GRACE + DAY)
        with casweights.open(objects) as repo:
            repo.gc(apply=True)
    with casweights.open(objects) as repo:
        repo.database.index.load()
        assert repo.database.index.plain_chain(chunk) is not None
        assert_same_state(repo.load("main"), {"w": embedding(60)})


def test_a_collection_keeps_the_roots_of_what_stays(objects: CountingStore) -> None:
    create(objects)
    with casweights.open(objects) as repo:
        repo.commit({"w": embedding(100)}, branch="root")
        kept = repo.commit({"w": embedding(60)}, branch="main", parent="root").id
        repo.delete_branch("root")
        repo.expire(Keep(last=1), apply=True)
        repo.maintain()
    for _ in range(3):
        age(objects.inner, GRACE + DAY)
        with casweights.open(objects) as repo:
            repo.gc(apply=True)
    check_versions(objects, {kept: {"w": embedding(60)}})


def test_a_collection_keeps_the_roots_of_frames_whose_version_is_not_there_yet(
    objects: CountingStore,
) -> None:
    create(objects)
    cut = raw_of(embedding(60))
    with casweights.open(objects) as repo:
        version = repo.commit({"w": embedding(100)}, branch="gone")
        repo.commit({"w": embedding(10, seed=3)}, branch="main")
        repo.delete_branch("gone")
        repo.maintain()
        age(objects.inner, GRACE + DAY)
        [(root, _)] = list(version.pieces())
        made = encode(repo, cut, [ChunkSlice(root, 0, len(cut))])
        chunk = repo.database.hasher(cut)
        add_pack(repo, chunk, cut, [made])
    with casweights.open(objects) as repo:
        repo.gc(apply=True)
    with casweights.open(objects) as repo:
        repo.database.index.load()
        assert repo.database.index.chain(chunk) is not None


@pytest.mark.parametrize("of", ["root", "derived"])
def test_verify_finds_a_damaged_frame(objects: CountingStore, of: str) -> None:
    create(objects)
    with casweights.open(objects, cache_size=0) as repo:
        first = repo.commit({"w": embedding(100)})
        version = repo.commit({"w": moved(embedding(60))})
        chunk, _ = next(iter((first if of == "root" else version).pieces()))
        repo.database.index.load()
        chain = repo.database.index.chain(chunk)
        assert chain is not None
        name, start, _ = chain.frames[-1].range
    flip_bit(objects.inner, name, start + 20)
    with casweights.open(objects, cache_size=0) as repo:
        problems = [str(problem) for problem in repo.verify().problems]
        assert any(f"the frame at byte {start}, chunk {chunk}" in problem for problem in problems)
        assert (f"its base {chunk} cannot be rebuilt" in "".join(problems)) == (of == "root")
        with pytest.raises(casweights.IntegrityError):
            repo.load("main")
        repo.commit({"w": embedding(100)}, branch="again")
        repo.commit({"w": moved(embedding(60))}, branch="again")
        assert_same_state(repo.load("main"), {"w": moved(embedding(60))})


class Unannounced(ReadaheadStore):
    """A store that counts what was read and had not been announced before."""

    missed = 0

    def _take(self, name: str, start: int, stop: int) -> memoryview | None:
        found = super()._take(name, start, stop)
        self.missed += found is None and self._blocks > 0
        return found


def test_roots_are_announced_to_a_store_over_a_network(objects: CountingStore) -> None:
    """A checkout and a commit fetch the roots with all that they need, and not one by one."""
    create(objects)
    with casweights.open(objects) as repo:
        repo.commit({f"w{n}": embedding(100 + n, seed=n) for n in range(20)})
    store = Unannounced(Remote(objects), MiB)
    with casweights.open(store, cache_size=0, workers=1) as repo:
        repo.load("main")
        store.missed = 0
        cuts = {f"w{n}": moved(embedding(90, seed=n)) for n in range(20)}
        repo.commit(cuts)
        assert Encoding.DERIVED in encodings(repo)
        assert store.missed <= 4
    store = Unannounced(Remote(objects), MiB)
    with casweights.open(store, cache_size=0, workers=1) as repo:
        store.missed = 0
        assert_same_state(repo.load("main"), cuts)
        assert store.missed <= 4
