"""The ways in which collections of other systems have lost data, one test each, and what stops one.

H1 to H5 and H8 are numbered as in docs/design/033; `test_collect_times.py` has H6 and H7.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from casweights.errors import (
    CasweightsError,
    NotFoundError,
)
from casweights.format import names
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.states import assert_same_state
from tests.ages import age
from tests.findings import Remote
from tests.histories import State, check_versions, step
from tests.large_versions import packs_apart
from tests.lengths import moments, spread
from tests.operations.collecting import (
    KINDS,
    LONG,
    abandon,
    collect,
    commit_all,
    finish,
    make_objects,
    open_repo,
    stored,
    unsigned,
)
from tests.operations.turns import Watched
from tests.racing import seen_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectInfo, ObjectStore
    from casweights.system.buffers import Buffer

    Versions = dict[SnapshotId, State]


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    return make_objects(request.param, tmp_path)


@pytest.fixture
def repo(objects: ObjectStore) -> Iterator[Repository]:
    with open_repo(objects, create=True) as repository:
        yield repository


def test_what_nothing_names_goes_after_two_runs_and_the_rest_stays(
    repo: Repository, objects: ObjectStore
) -> None:
    kept = commit_all(repo, "main")
    before = unsigned(stored(objects))
    lost = abandon(repo, objects)
    said = repo.gc()
    assert not said.applied
    assert said.objects
    assert not list(objects.list(names.ASIDE))
    done = repo.gc(apply=True)
    assert done.objects == said.objects
    with open_repo(objects) as reader:
        for version, state in lost.items():  # readers that are under way
            assert_same_state(reader.load(version), state)
    assert repo.gc(apply=True).finished == ()  # too early
    age(objects, LONG)
    assert repo.gc(apply=True).finished == (done.collection,)
    with open_repo(objects) as reader, pytest.raises(NotFoundError):
        reader.load(next(iter(lost)))
    assert unsigned(stored(objects)) == before
    check_versions(objects, kept)


def test_undelete_brings_all_versions_of_a_collection_back(
    repo: Repository, objects: ObjectStore
) -> None:
    commit_all(repo, "main")
    lost = abandon(repo, objects)
    before = stored(objects)
    digits = collect(repo)
    assert stored(objects) != before
    done = repo.undelete_collection(digits)
    assert set(done.versions) == lost.keys()
    assert unsigned(stored(objects)) == unsigned(before)
    check_versions(objects, lost)
    assert repo.gc().objects == ()  # they are young again
    with pytest.raises(NotFoundError):
        repo.undelete_collection(digits)


def test_h1_packs_of_a_running_commit_stay_with_what_they_build_on(
    repo: Repository, objects: ObjectStore
) -> None:
    """The commit has written a pack of differences from a version that nothing names."""
    base = abandon(repo, objects)
    tip = list(base)[-1]
    state = {"w": step(base[tip]["w"], 0.02, 8)}
    gone: list[int] = []

    def collect_now(write: int) -> None:
        if write == 1:
            with open_repo(objects) as other:
                gone.append(len(other.gc(apply=True).objects))

    with packs_apart(), open_repo(Watched(objects, after=collect_now)) as writer:
        new = writer.commit(state, branch="other", parent=tip).id
    assert gone == [0]
    finish(repo, objects)
    check_versions(objects, {**base, new: state})


@pytest.mark.parametrize("remote", [False, True])
def test_h2_a_chunk_that_is_about_to_go_is_stored_again(
    repo: Repository, objects: ObjectStore, remote: bool
) -> None:
    """A handle knows the pack of a chunk that another client sets aside."""
    commit_all(repo, "main")
    with packs_apart(), open_repo(Remote(objects) if remote else objects) as old:
        lost = abandon(old, objects)
        collect(repo)
        state = next(iter(lost.values()))
        new = old.commit({"again": state["w"]}, branch="again").id
        finish(repo, objects)
    check_versions(objects, {new: {"again": state["w"]}})


def test_h2_chunks_of_a_base_that_is_no_parent_are_stored_again(
    repo: Repository, objects: ObjectStore
) -> None:
    """Nothing but the parent keeps what a commit builds on."""
    kept = commit_all(repo, "main")
    with packs_apart(), open_repo(Remote(objects)) as old:
        lost = abandon(old, objects)
        base, state = list(lost.items())[-1]
        collect(repo)
        finish(repo, objects)  # a handle that was paused for long
        new = old.commit({"w": state["w"], "again": state["w"]}, base=base).id
    check_versions(objects, {**kept, new: {"w": state["w"], "again": state["w"]}})


class AtVersion(WrapperStore):
    """A store that calls a function before a version is written."""

    def __init__(self, inner: ObjectStore, call: Callable[[], object]) -> None:
        super().__init__(inner)
        self._call = call

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if name.startswith((names.SNAPSHOTS, names.HEADS)):
            self._call()
        return super().put(name, parts)


@pytest.mark.parametrize("remote", [False, True])
def test_h2_what_was_read_from_aside_is_no_proof(
    repo: Repository, objects: ObjectStore, remote: bool
) -> None:
    """A commit reads packs that were set aside, which are deleted before its version is written."""
    with packs_apart():
        one, other = (commit_all(repo, "lost", 1, seed) for seed in (50, 70))
        repo.delete_branch("lost")
        repo.maintain()
        age(objects, LONG)
        collect(repo)
        age(objects, LONG)
        (version, old), (_, foreign) = *one.items(), *other.items()
        repo.database.refs.set_branch("used", version, force=False, ready=seen_now)
        state = {"w": step(old["w"], 0.01, 3), "v": foreign["w"]}
        slow = AtVersion(objects, lambda: repo.gc(apply=True))
        with open_repo(Remote(slow) if remote else slow) as writer:
            new = writer.commit(state, branch="used").id
    assert not list(objects.list(names.ASIDE))
    check_versions(objects, {**one, new: state})


def test_h2_nothing_names_a_version_that_is_not_in_its_place(
    repo: Repository, objects: ObjectStore
) -> None:
    """A handle remembers a version that was set aside, and later deleted."""
    lost = abandon(repo, objects)
    version, state = list(lost.items())[-1]
    collect(repo)
    for note in (f"undelete {version} --as NAME", None):
        for name in (
            lambda: repo.branch("b", version),
            lambda: repo.tag("t", version),
            lambda: repo.commit({"w": step(state["w"], 0.01, 3)}, branch="b", parent=version),
        ):
            with pytest.raises(NotFoundError, match="no snapshot") as caught:
                name()
            assert note is None or note in caught.value.__notes__[0]
        finish(repo, objects)
    assert (repo.branches(), repo.tags()) == ({}, {})


def test_h2_what_was_used_while_it_was_set_aside_comes_back(
    repo: Repository, objects: ObjectStore
) -> None:
    """A branch is made at a version just when a collection that began before sets it aside."""
    commit_all(repo, "main")
    lost = abandon(repo, objects)
    version = list(lost)[-1]
    collect(repo)
    repo.database.refs.set_branch("used", version, force=False, ready=seen_now)
    check_versions(objects, lost)  # from aside
    finish(repo, objects)
    assert not list(objects.list(names.ASIDE))
    check_versions(objects, lost)


def test_h3_a_young_version_keeps_its_old_parents_and_chunks(
    repo: Repository, objects: ObjectStore
) -> None:
    old = commit_all(repo, "side")
    age(objects, LONG)
    states = list(old.values())
    new = repo.commit({"w": step(states[-1]["w"], 0.01, 9)}, branch="side")
    repo.delete_branch("side")
    assert repo.gc(apply=True).objects == ()
    check_versions(objects, old)
    repo.branch("side", new.id)


def test_h3_a_young_version_that_nothing_ever_named_keeps_its_parents(
    repo: Repository, objects: ObjectStore
) -> None:
    """A push sends a version without a name, whose parents have been there for long."""
    with open_repo(MemoryStore(), create=True) as source:
        versions = commit_all(source, "side")
        source.push(repo, [str([*versions][-2])])
        age(objects, LONG)
        source.push(repo, [str([*versions][-1])])
    assert repo.gc(apply=True).objects == ()
    check_versions(objects, versions)
    age(objects, LONG)
    assert repo.gc().objects


def test_h4_a_handle_that_knows_no_new_refs_collects_none_of_their_versions(
    repo: Repository, objects: ObjectStore
) -> None:
    """What a handle remembers of refs and packs is no reason to delete."""
    with open_repo(objects) as stale:
        commit_all(stale, "main", 1)
        stale.gc(apply=True)
        new = commit_all(repo, "other")
        age(objects, LONG)
        assert stale.gc(apply=True).objects == ()
    check_versions(objects, new)


class Hiding(WrapperStore):
    """A store of which one listing lacks some objects that exist."""

    def __init__(self, inner: ObjectStore, prefix: str, number: int) -> None:
        super().__init__(inner)
        self._prefix, self._number, self.listed = prefix, number, 0

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        infos = list(self.inner.list(prefix))
        if prefix.startswith(self._prefix):
            self.listed += 1
            if self.listed == self._number:
                return iter(infos[1::2])
        return iter(infos)


FOLDERS = [names.SNAPSHOTS, names.PACKS, names.ARCHIVES, names.HEADS, names.TAGS]


@pytest.mark.parametrize("folder", FOLDERS)
def test_h5_a_listing_that_lacks_objects_makes_no_run_lose_a_version(
    repo: Repository, objects: ObjectStore, folder: str
) -> None:
    with packs_apart():
        tagged = commit_all(repo, "b", seed=9)
        for number, version in enumerate(tagged):
            repo.tag(f"t{number}", version)
        repo.delete_branch("b")
        kept = commit_all(repo, "main") | tagged
        lost = abandon(repo, objects)
    for number in spread(range(1, 8), 4, (folder, type(objects).__name__)):
        hiding = Hiding(objects, folder, number)
        with open_repo(hiding) as reader:
            try:
                done = reader.gc(apply=True)
            except CasweightsError:
                continue
        gone = {info.name for info in done.objects}
        assert not any(names.snapshot_name(version) in gone for version in kept)
        check_versions(objects, kept)
        if done.collection is not None:
            repo.undelete_collection(done.collection)
            age(objects, LONG)
    check_versions(objects, lost)


@pytest.mark.parametrize("number", [2, 3])
def test_h5_a_listing_that_lacks_what_an_earlier_one_had_stops_the_run(
    repo: Repository, objects: ObjectStore, number: int
) -> None:
    with packs_apart():
        abandon(repo, objects)
    before = stored(objects)
    for folder in (names.PACKS, names.SNAPSHOTS):
        with (
            open_repo(Hiding(objects, folder, number)) as reader,
            pytest.raises(CasweightsError, match=r"lacks|needs"),
        ):
            reader.gc(apply=True)
    assert stored(objects) == before


def test_h8_a_version_that_is_named_while_a_run_marks_is_kept(
    repo: Repository, objects: ObjectStore
) -> None:
    """At each call of the run, another client names what was about to go."""
    lost = abandon(repo, objects)
    version = list(lost)[-1]
    for call in moments(16, type(objects).__name__):
        interrupt = Naming(call, objects, version)
        with open_repo(watched := Watched(objects)) as collector:
            watched.before = interrupt
            done = collector.gc(apply=True)
            watched.before = lambda _: None
        if not interrupt.named:
            break
        check_versions(objects, lost)
        finish(repo, objects)
        check_versions(objects, lost)
        repo.delete_branch("late")
        repo.maintain()
        age(objects, LONG)
    assert call > 10
    assert done.collection is not None  # it came too late, and was refused


class Naming:
    """Names a version at a call of a store."""

    def __init__(self, call: int, objects: ObjectStore, version: SnapshotId) -> None:
        self._left, self._objects, self._version = call, objects, version
        self.named = False

    def __call__(self, _: int) -> None:
        self._left -= 1
        if self._left == 0:
            with open_repo(self._objects) as other, suppress(NotFoundError):
                other.branch("late", self._version)
                self.named = True
