"""Folding: a store whose versions have expired takes about what the others alone would take."""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

from casweights.config import Keep
from casweights.database import reflog
from casweights.errors import IntegrityError
from casweights.format import names
from casweights.operations import rewriting, shortening
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.histories import check_versions, history, step, weights
from tests.large_versions import packs_apart
from tests.operations.collecting import KINDS, LONG, make_objects, open_repo
from tests.operations.turns import Watched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.results import FoldStats
    from casweights.stores.base import ObjectStore
    from tests.operations.collecting import Versions

STEPS, EVERY = 60, 15
MAX_SHARE = 1.15


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def objects(kind: str, tmp_path: Path) -> ObjectStore:
    return make_objects(kind, tmp_path)


@pytest.fixture
def repo(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    monkeypatch.setattr(reflog, "RECENT_MOVES", 1)
    with open_repo(objects, create=True) as repository:
        yield repository


def run(repo: Repository, seed: int = 0, *, archived: bool = True) -> Versions:
    """Commit a run, let most of it expire, and grow old; return the versions that stay."""
    versions = {repo.commit(s, branch="main").id: s for s in history(STEPS, 0.02, seed=seed)}
    repo.expire(Keep(every=EVERY), apply=True)
    if archived:
        repo.maintain()
    else:
        for _ in repo.database.refs.trim():
            pass
    kept = {version.id: versions[version.id] for version in [*repo.log()][::-1]}
    assert len(kept) == STEPS // EVERY
    return kept


@cache
def expired(kind: str) -> tuple[MemoryStore, Versions]:
    """Make a store with a run as `run` does; return it, and the versions that stay."""
    source = Bucket() if kind == "bucket" else MemoryStore()
    with open_repo(source, create=True) as repo:
        return source, run(repo)


class Expired(NamedTuple):
    """An open store with a run of which most has expired.

    Attributes:
        repo: The store, as a process opens it that did not write the run.
        kept: The versions that stay.
    """

    repo: Repository
    kept: Versions


@pytest.fixture
def past(kind: str, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Expired]:
    monkeypatch.setattr(reflog, "RECENT_MOVES", 1)
    source, kept = expired(kind)
    objects.create()
    for info in source.list():
        objects.put(info.name, [source.get(info.name)])
    with open_repo(objects) as repo:
        yield Expired(repo, dict(kept))


def collect(repo: Repository, objects: ObjectStore, runs: int = 4) -> list[FoldStats]:
    """Do some runs, a grace time apart; return what each wrote again."""
    found = []
    for _ in range(runs):
        age(objects, LONG)
        found.append(repo.gc(apply=True).folded)
    return [folded for folded in found if folded is not None]


def size(objects: ObjectStore) -> int:
    return sum(info.size for info in objects.list())


def size_alone(versions: Versions) -> int:
    """Return the bytes of a store to which only these versions were committed."""
    alone = MemoryStore()
    with open_repo(alone, create=True) as repo:
        for state in versions.values():
            repo.commit(state, branch="main")
    return size(alone)


@pytest.mark.parametrize("archived", [True, False])
def test_an_expired_run_takes_what_the_versions_that_stay_take(
    repo: Repository, objects: ObjectStore, archived: bool
) -> None:
    kept = run(repo, archived=archived)
    before = size(objects)
    folded = collect(repo, objects)
    assert sum(done.chunks for done in folded) > 0
    # In a bucket, the newest version is a move of its branch, which stays as it is.
    moves = sum(info.size for info in objects.list(names.HEADS))
    assert size(objects) - moves <= MAX_SHARE * size_alone(kept) < before / 2
    check_versions(objects, kept)
    assert repo.gc(apply=True).folded is None, "there is no end to it"


def test_every_version_can_be_read_after_each_run(past: Expired, objects: ObjectStore) -> None:
    repo, kept = past
    with open_repo(objects) as old:  # knows where everything was
        for _ in range(4):
            collect(repo, objects, 1)
            check_versions(objects, kept)
            for version in kept:
                old.load(version)


def test_a_run_deletes_nothing_that_it_has_written_again(
    past: Expired, objects: ObjectStore
) -> None:
    repo, _ = past
    age(objects, LONG)
    before = {info.name for info in objects.list(names.PACKS)}
    done = repo.gc(apply=True)
    gone = {found.name for found in done.objects}
    assert done.folded is not None
    assert done.folded.nbytes > 0
    assert before - gone <= {info.name for info in objects.list(names.PACKS)}
    age(objects, LONG)
    assert repo.gc(apply=True).nbytes > 0


def test_a_store_without_waste_is_left_alone(repo: Repository, objects: ObjectStore) -> None:
    for state in history(12, 0.02):
        repo.commit(state, branch="main")
    repo.maintain()
    age(objects, LONG)
    before = {info.name for info in objects.list(names.PACKS)}
    assert collect(repo, objects, 2) == []
    assert {info.name for info in objects.list(names.PACKS)} == before


@pytest.mark.parametrize("last", [1, 40])
def test_reading_a_folded_version_takes_at_most_one_and_a_half_times_a_whole_one(
    repo: Repository, objects: ObjectStore, last: int
) -> None:
    """Of many recent versions, most need no new frame, but a chain of all of them is too long."""
    states = [*history(STEPS, 0.05)]
    for state in states:
        repo.commit(state, branch="main")
    repo.expire(Keep(last=last, every=EVERY), apply=True)
    repo.maintain()
    collect(repo, objects)
    whole = MemoryStore()
    with open_repo(whole, create=True) as alone:
        alone.commit(states[0], branch="main")
        (version,) = alone.stats().versions
    for found in repo.stats().versions:
        assert found.read_bytes <= 1.5 * version.read_bytes


def test_the_tables_of_folded_versions_name_packs_that_exist(
    past: Expired, objects: ObjectStore
) -> None:
    repo, kept = past
    collect(repo, objects)
    there = {info.name for info in objects.list(names.PACKS)}
    with open_repo(objects) as reader:
        snapshots = reader.database.snapshots
        archived = snapshots.archives.locate(kept)
        for version in archived:
            assert set(map(names.pack_name, snapshots.load_stored(version).table.packs)) <= there
    assert len(archived) > 1


@pytest.mark.parametrize("density", [0.02, 0.6])
def test_variants_of_an_expired_base_are_not_stored_whole(
    repo: Repository, objects: ObjectStore, density: float
) -> None:
    """Without the base, each of them would take as much as the base."""
    base = weights(2)
    root = repo.commit({"w": base}, branch="base").id
    kept: Versions = {}
    for n in range(6):
        branch, state = f"v{n}", {"w": step(base, density, n + 1)}
        repo.branch(branch, root)
        kept[repo.commit(state, branch=branch).id] = state
    repo.delete_branch("base")
    repo.expire(Keep(last=1), apply=True)
    repo.maintain()
    before = size(objects)
    collect(repo, objects)
    assert size(objects) < 1.1 * before
    check_versions(objects, kept)


def test_bases_of_a_running_commit_stay(past: Expired, objects: ObjectStore) -> None:
    """While it works, two runs fold the chain that it builds on and set the old one aside."""
    repo, kept = past
    tip, state = next(iter(kept.items()))
    state = {"w": step(state["w"], 0.02, 99)}
    age(objects, LONG)

    def collect_now(write: int) -> None:
        if write <= 2:
            with open_repo(objects) as other:
                other.gc(apply=True)

    with packs_apart(), open_repo(Watched(objects, after=collect_now)) as writer:
        kept[writer.commit(state, branch="other", parent=tip).id] = state
    check_versions(objects, kept)
    collect(repo, objects)
    check_versions(objects, kept)


def test_a_kept_version_inside_a_chain_keeps_it_usable(
    repo: Repository, objects: ObjectStore
) -> None:
    """Recent versions stay one by one, and older ones every now and then."""
    versions = {repo.commit(s, branch="main").id: s for s in history(STEPS, 0.02)}
    repo.expire(Keep(last=10, every=EVERY), apply=True)
    repo.maintain()
    kept = {version.id: versions[version.id] for version in [*repo.log()][::-1]}
    before = size(objects)
    collect(repo, objects)
    assert size(objects) < before
    check_versions(objects, kept)
    assert size(objects) <= MAX_SHARE * size_alone(kept)


def test_a_frame_that_decodes_to_something_else_stops_the_run(
    past: Expired, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, kept = past
    age(objects, LONG)
    numbers = itertools.count()

    def decode(encoding: int, payload: bytes, out: memoryview) -> None:
        out[0] = next(numbers) % 256

    monkeypatch.setattr(rewriting, "decode", decode)
    with pytest.raises(IntegrityError, match="nothing was deleted"):
        repo.gc(apply=True)
    monkeypatch.undo()
    check_versions(objects, kept)


def test_a_family_that_is_too_large_for_memory_stays_as_it_is(
    past: Expired, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortening, "_MAX_NEW", 100)
    repo, kept = past
    assert all(done.chunks == 0 for done in collect(repo, objects))
    check_versions(objects, kept)


def test_nothing_is_written_again_if_the_caller_says_so(
    past: Expired, objects: ObjectStore
) -> None:
    repo, _ = past
    age(objects, LONG)
    assert repo.gc(apply=True, fold=False).folded is None


def test_of_two_copies_of_a_version_the_sound_one_stays(
    past: Expired, objects: ObjectStore
) -> None:
    repo, kept = past
    version, state = list(kept.items())[1]
    archives = repo.database.snapshots.archives
    (place,) = archives.locate([version])[version]
    objects.put(names.snapshot_name(version), [archives.read(place)])
    damage(objects, place.archive, place.member.offset + 40)
    for _ in range(3):
        age(objects, LONG)
        with open_repo(objects) as other:
            other.gc(apply=True)
    with open_repo(objects) as reader:
        assert_same_state(reader.load(version), state)


def damage(objects: ObjectStore, name: str, offset: int) -> None:
    """Flip a byte of an object."""
    content = bytearray(objects.get(name))
    content[offset] ^= 1
    objects.delete(name)
    objects.put(name, [content])
