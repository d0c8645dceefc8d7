"""Collections that are killed, refused, too slow, or two at once."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from casweights.config import Keep
from casweights.errors import CasweightsError, ConflictError, ErrorCode, IntegrityError, StoreError
from casweights.format import names
from casweights.format.collection import Part
from casweights.operations import maintain, merging
from casweights.operations.collections import list_parts
from casweights.stores.base import NO_NAMES, ObjectStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from tests.ages import DAY, age
from tests.copying_bucket import Bucket
from tests.histories import check_versions
from tests.large_versions import packs_apart
from tests.lengths import examples, moments
from tests.operations.collecting import (
    LONG,
    InPlace,
    abandon,
    apply,
    collect,
    commit_all,
    open_repo,
    stored,
    undelete_all,
    unsigned,
)
from tests.operations.troubles import Partial
from tests.operations.turns import Watched
from tests.racing import seen_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from casweights import Repository
    from casweights.stores.base import ObjectInfo

    Verb = Callable[[Repository], object]


class Dying(Watched):
    """A store that fails from a call on, or after a write, as for a process that is killed."""

    def __init__(self, inner: ObjectStore, last: int, *, by_write: bool) -> None:
        super().__init__(inner, self._count_call, self._count_write)
        self.left, self._by_write = last, by_write

    def _count_call(self, _: int) -> None:
        self._count(not self._by_write)

    def _count_write(self, _: int) -> None:
        self._count(self._by_write)

    def _count(self, counts: bool) -> None:
        self.left -= counts
        if self.left <= 0:
            raise StoreError(ErrorCode.IO_FAILED, "killed")


@pytest.fixture(params=["memory", "bucket"])
def objects(request: pytest.FixtureRequest) -> MemoryStore:
    return Bucket() if request.param == "bucket" else MemoryStore()


@pytest.fixture
def repo(objects: MemoryStore) -> Iterator[Repository]:
    with open_repo(objects, create=True) as repository:
        yield repository


def names_of(objects: ObjectStore) -> set[str]:
    return {info.name for info in objects.list()}


def copy_of(objects: MemoryStore) -> MemoryStore:
    """Return a store with the same objects."""
    copy = type(objects)()
    copy._objects, copy._created = dict(objects._objects), dict(objects._created)
    return copy


@pytest.mark.parametrize(
    "verb", ["collect", "finish", "bring back", "undelete", "maintain", "repack"]
)
def test_a_batch_that_is_done_in_part_loses_nothing(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is lost, too, as where a bucket refuses some lines and the connection breaks."""
    objects = Bucket()
    with open_repo(objects, create=True) as repo, packs_apart():
        kept = commit_all(repo, "main", 4)
        lost = abandon(repo, objects, count=4)
        if verb in ("finish", "bring back", "undelete"):
            collect(repo)
            age(objects, LONG if verb == "finish" else DAY)
        if verb == "bring back":
            repo.database.refs.set_branch("used", list(lost)[-1], force=False, ready=seen_now)
            kept |= lost
    monkeypatch.setattr(merging, "FAN_IN", 2)
    monkeypatch.setattr(maintain, "_RECENT_PACKS", 0)
    verbs: dict[str, Verb] = {
        "undelete": undelete_all,
        "maintain": lambda repo: repo.maintain(),
        "repack": lambda repo: repo.repack(),
    }
    fired = 0
    for number in range(1, 1 + examples(6)):
        partial = Partial(after := copy_of(objects), number)
        with open_repo(partial) as broken, suppress(CasweightsError):
            verbs.get(verb, apply)(broken)
        fired += partial.has_failed
        check_versions(after, kept if verb == "finish" else kept | lost)
        with open_repo(after) as next_one:
            for _ in range(3):
                age(after, LONG)
                next_one.gc(apply=True)
        check_versions(after, kept)
        assert all(Part.END in parts for parts in list_parts(after).values())
    assert fired >= 2


def check_places(objects: ObjectStore) -> None:
    """Check that each version in its place has its bytes in their places."""
    with open_repo(InPlace(objects)) as repo:
        for version in repo.database.snapshots.ids():
            repo.load(version)


@pytest.mark.parametrize("by_write", [False, True])
@pytest.mark.parametrize("verb", ["collect", "finish", "bring back", "undelete", "undelete one"])
def test_after_a_crash_anywhere_the_store_is_sound_and_the_next_run_finishes(
    repo: Repository, objects: MemoryStore, verb: str, by_write: bool
) -> None:
    kept = commit_all(repo, "main", 1)
    with packs_apart():
        lost = abandon(repo, objects)
    if verb != "collect":
        collect(repo)
        age(objects, LONG if verb == "finish" else DAY)
    if verb == "bring back":
        repo.database.refs.set_branch("used", list(lost)[-1], force=False, ready=seen_now)
        kept |= lost
    verbs: dict[str, Verb] = {
        "undelete": undelete_all,
        "undelete one": lambda repo: repo.undelete(list(lost)[-1], "used"),
    }
    call = verbs.get(verb, apply)
    # Most calls are reads, between which nothing changes.
    for last in moments(3 if by_write else 32, verb):
        dying = Dying(after := copy_of(objects), 10**9, by_write=by_write)
        with open_repo(dying) as killed:
            dying.left = last
            with suppress(CasweightsError):
                call(killed)
            is_done, dying.left = dying.left > 0, 10**9
        check_versions(after, kept)
        check_places(after)
        with open_repo(after) as next_one:
            if verb == "undelete":
                undelete_all(next_one)
                check_versions(after, lost)
            elif verb == "undelete one":
                with suppress(ConflictError):  # the branch is there
                    call(next_one)
                check_versions(after, lost)
            for _ in range(2):
                age(after, LONG)
                apply(next_one)
            if verb == "undelete":
                age(after, LONG)
                apply(next_one)
        check_versions(after, kept | lost if verb == "undelete one" else kept)
        assert not list(after.list(names.ASIDE))
        assert not any(n.endswith(("plan", "end")) for n in names_of(after))
        if is_done:
            break
    assert last > 3


def test_a_read_or_listing_that_fails_deletes_nothing(
    repo: Repository, objects: MemoryStore
) -> None:
    kept = commit_all(repo, "main")
    lost = abandon(repo, objects)
    before = stored(objects)

    class Failing(Watched):
        left = 10**9

        def readinto(self, name: str, start: int, out: memoryview) -> None:
            self.fail()
            super().readinto(name, start, out)

        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            self.fail()
            return super().list(prefix)

        def fail(self) -> None:
            self.left -= 1
            if self.left == 0:
                raise StoreError(ErrorCode.IO_FAILED, "broken")

    for last in moments(8):
        failing = Failing(objects)
        with open_repo(failing) as reader:
            failing.left = last
            try:
                done = reader.gc(apply=True)
            except StoreError:
                aside = {i.name.split("/", 2)[2] for i in objects.list(names.ASIDE)}
                there = {n for n in stored(objects) if not n.startswith(names.ASIDE)}
                assert there | aside >= before  # nothing is lost, whatever was moved
                check_versions(objects, kept | lost if not aside else kept)
                undelete_all(repo)
                age(objects, LONG)
                continue
            assert done.objects
            break
    assert last > 5


class Refusing(WrapperStore):
    """A store that refuses one copy of each group, and carries out the rest, with or without error.

    This is what the Hub does with a batch of copies of which it refuses one.
    """

    def __init__(self, inner: ObjectStore, number: int, *, silent: bool) -> None:
        super().__init__(inner)
        self._number, self._silent = number, silent

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        for number, name in enumerate(names):
            if number != self._number:
                self.put(name, [self.inner.get(called.get(name, name))])
        if not self._silent and self._number < len(names):
            raise StoreError(ErrorCode.IO_FAILED, "the store refused a copy")


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("number", range(4))
def test_a_refused_copy_deletes_nothing(
    repo: Repository, objects: MemoryStore, number: int, silent: bool
) -> None:
    kept = commit_all(repo, "main")
    lost = abandon(repo, objects)
    before = stored(objects)
    with open_repo(Refusing(objects, number, silent=silent)) as refused:
        if number < len(lost):
            with pytest.raises(StoreError, match=r"copied|refused"):
                refused.gc(apply=True)
        else:
            refused.gc(apply=True)
            undelete_all(repo)
            before = unsigned(before)
    assert stored(objects) >= before
    check_versions(objects, kept | lost)


@pytest.mark.parametrize("folder", [names.SNAPSHOTS, names.PACKS, names.HEADS])
def test_damage_stops_a_collection(repo: Repository, objects: MemoryStore, folder: str) -> None:
    if folder == names.HEADS and isinstance(objects, Bucket):
        pytest.skip("moves of a bucket say all by their names")
    with packs_apart():
        commit_all(repo, "main")
        abandon(repo, objects)
    before = stored(objects)
    for info in list(objects.list(f"{folder}main" if folder == names.HEADS else folder)):
        data = objects.get(info.name)
        for broken in (data[:-12] + bytes(12), data[:-9]):
            objects._objects[info.name] = broken
            with open_repo(objects) as reader, pytest.raises(IntegrityError):
                reader.gc(apply=True)
        objects._objects[info.name] = data
    assert stored(objects) == before


@pytest.mark.parametrize("folder", [names.SNAPSHOTS, names.PACKS])
def test_a_missing_object_that_is_needed_stops_a_collection(
    repo: Repository, objects: MemoryStore, folder: str
) -> None:
    with packs_apart():
        kept = commit_all(repo, "main")
        repo.tag("first", next(iter(kept)))
        abandon(repo, objects)
    stopped = 0
    for info in list(objects.list(folder)):
        before = stored(objects)
        data, created = objects._objects.pop(info.name), objects._created.pop(info.name)
        with open_repo(objects) as reader:
            try:
                reader.gc(apply=True)
            except IntegrityError:
                stopped += 1
                assert stored(objects) == before - {info.name}
        objects._objects[info.name], objects._created[info.name] = data, created
        check_versions(objects, kept)  # what was set aside was not needed
        undelete_all(repo)
        age(objects, LONG)
    moves_are_versions = isinstance(objects, Bucket) and folder == names.SNAPSHOTS
    assert stopped == (0 if moves_are_versions else len(kept))


@pytest.mark.parametrize("recorded", [False, True])
def test_a_parent_that_is_missing_without_a_record_stops_a_collection(
    repo: Repository, objects: MemoryStore, recorded: bool
) -> None:
    """The branch was pushed, so its log names its head alone."""
    with open_repo(MemoryStore(), create=True) as source, packs_apart():
        versions = [*commit_all(source, "main", 3)]
        source.push(repo)
    abandon(repo, objects)
    if recorded:
        repo.expire(Keep(last=1), apply=True)
    name = names.snapshot_name(versions[1])
    del objects._objects[name], objects._created[name]
    before = stored(objects)
    with open_repo(objects) as reader:
        if recorded:
            assert reader.gc(apply=True).objects
        else:
            with pytest.raises(IntegrityError, match=f"ancestor {versions[1]}"):
                reader.gc(apply=True)
            assert stored(objects) == before


class AnotherRun:
    """A collection that runs at a call of a store."""

    def __init__(self, call: int, objects: ObjectStore) -> None:
        self.left, self._objects = call, objects
        self.seen: list[ConflictError] = []

    def __call__(self, _: int) -> None:
        self.left -= 1
        if self.left == 0:
            with open_repo(self._objects) as repo:
                try:
                    repo.gc(apply=True)
                except ConflictError as error:
                    self.seen.append(error)


def test_two_collections_at_once_lose_nothing(repo: Repository, objects: MemoryStore) -> None:
    kept = commit_all(repo, "main")
    lost = abandon(repo, objects)
    for call in moments(16):
        other = AnotherRun(call, objects)
        seen: list[ConflictError] = other.seen
        with open_repo(watched := Watched(objects)) as one:
            watched.before = other
            try:
                one.gc(apply=True)
            except ConflictError as error:
                seen.append(error)
            watched.before = lambda _: None
        assert len(seen) < 2
        assert all(error.code is ErrorCode.BUSY for error in seen)
        check_versions(objects, kept)
        undelete_all(repo)
        check_versions(objects, lost)
        age(objects, LONG)
        if other.left > 0:
            break
    assert call > 20
