"""Versions whose object is a move of a branch have the name of a version all the same."""

from __future__ import annotations

import threading
from contextlib import suppress
from inspect import signature
from typing import TYPE_CHECKING

import pytest

from casweights.database.moves import Version, parse_move, version_in
from casweights.database.reflog import RefLog
from casweights.database.refs import Head, Refs
from casweights.database.version_names import VersionNames
from casweights.errors import ConflictError, NotFoundError, StoreError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.stores.base import Capabilities, ObjectInfo, ObjectStore
from casweights.stores.memory import MemoryStore
from casweights.stores.optional import SupportsCopy, SupportsLocators, ahead
from casweights.stores.readahead import ReadaheadStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.conformance import StoreTests
from casweights.testing.faults import Fault, FaultyStore
from casweights.testing.versatile import VersatileStore
from tests.racing import Time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.system.buffers import Buffer

A, B, C, D = (SnapshotId(bytes([digit]) * 32) for digit in (0xAA, 0xBB, 0xCC, 0xDD))
NAME = names.snapshot_name(A)


class Bucket(VersatileStore):
    """A store without exclusive create, which copies objects.

    Attributes:
        calls: The calls that changed or listed it.
        hidden: Names of objects that listings leave out.
    """

    capabilities = Capabilities(exclusive_create=False, clock_skew=0.0)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.hidden: set[str] = set()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.calls.append(f"list {prefix}")
        return (info for info in super().list(prefix) if info.name not in self.hidden)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        self.calls.append(f"put {name}")
        return super().put(name, parts)

    def copy_from(self, source: ObjectStore, names: Sequence[str], called: object = None) -> None:
        self.calls.append(f"copy {len(names)}")
        super().copy_from(source, names, called)  # type: ignore[arg-type]

    def delete_all(self, names: Sequence[str]) -> None:
        self.calls.append(f"delete {len(names)}")
        super().delete_all(names)

    def delete(self, name: str) -> None:
        self.calls.append(f"delete {name}")
        super().delete(name)


def whole_move(snapshot: SnapshotId = A, position: int = 1, writer: str = "0" * 16) -> str:
    return names.move_name(names.HEADS, "main", position, snapshot, None, writer, names.STEP_SUFFIX)


@pytest.fixture
def bucket() -> Bucket:
    bucket = Bucket()
    bucket.put(whole_move(), [b"the version"])
    bucket.put("packs/other", [b"a pack"])
    bucket.calls.clear()
    return bucket


@pytest.fixture
def store(bucket: Bucket) -> VersionNames:
    return VersionNames(bucket)


READS: dict[str, Callable[[ObjectStore], object]] = {
    "size": lambda store: store.size(NAME) == 11,
    "get": lambda store: store.get(NAME, 4, 7) == b"version",
    "read": lambda store: store.read(NAME, 100) == b"the version",
    "exists": lambda store: store.exists(NAME),
    "sizes": lambda store: store.sizes([NAME, "packs/other"]) == {NAME: 11, "packs/other": 6},
    "present": lambda store: (
        store.present(["packs/no", NAME, "packs/other"]) == {NAME, "packs/other"}
    ),
    "list": lambda store: list(store.list(names.SNAPSHOTS)) == [ObjectInfo(NAME, 11)],
    "list some": lambda store: list(store.list(NAME[:14])) == [ObjectInfo(NAME, 11)],
    "readinto": lambda store: filled(store) == b"ersi",
}


def filled(store: ObjectStore) -> bytes:
    out = bytearray(4)
    store.readinto(NAME, 5, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("read", READS)
class TestReading:
    def test_a_version_that_is_a_move_is_found(self, store: VersionNames, read: str) -> None:
        assert READS[read](store)
        assert READS[read](store)

    def test_a_known_one_is_found_without_another_listing(
        self, store: VersionNames, bucket: Bucket, read: str
    ) -> None:
        list(store.list(f"{names.HEADS}main/"))
        bucket.calls.clear()
        assert READS[read](store)
        assert bucket.calls == [] or read.startswith("list")

    def test_one_that_this_store_wrote_is_found_although_listings_lack_it(
        self, bucket: Bucket, read: str
    ) -> None:
        bucket.delete(whole_move())
        store = VersionNames(bucket)
        store.put(whole_move(), [b"the version"])
        bucket.hidden.add(whole_move())
        assert READS[read](store) or read.startswith("list")

    def test_one_that_was_copied_out_of_a_known_move_is_found(
        self, store: VersionNames, bucket: Bucket, read: str
    ) -> None:
        list(store.list(names.HEADS))
        VersionNames(bucket).delete(whole_move())
        assert READS[read](store)

    def test_one_that_is_copied_between_two_looks_is_found(self, bucket: Bucket, read: str) -> None:
        """Its name is looked up before the copy, and the moves are listed after the deletion."""

        class Late(WrapperStore):
            def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
                VersionNames(bucket).delete(whole_move())
                return self.inner.list(prefix)

        assert READS[read](VersionNames(Late(bucket)))

    def test_one_in_both_places_is_found_once(
        self, store: VersionNames, bucket: Bucket, read: str
    ) -> None:
        bucket.copy(whole_move(), NAME)
        assert READS[read](store)


class TestMissing:
    def test_a_version_that_is_nowhere_is_not_found_after_one_listing(
        self, store: VersionNames, bucket: Bucket
    ) -> None:
        with pytest.raises(NotFoundError, match=f"no object snapshots/{B}"):
            store.size(names.snapshot_name(B))
        assert bucket.calls == [f"list {names.HEADS}"]
        assert not store.exists(names.snapshot_name(B))
        assert store.sizes([names.snapshot_name(B), NAME]) == {NAME: 11}

    def test_other_objects_cost_no_listing(self, store: VersionNames, bucket: Bucket) -> None:
        with pytest.raises(NotFoundError):
            store.size("packs/nothing")
        assert not store.exists("packs/nothing")
        assert bucket.calls == []

    def test_without_branches_in_the_store_nothing_is_added(self, bucket: Bucket) -> None:
        store = VersionNames(bucket, has_refs=False)
        assert not store.exists(NAME)
        assert list(store.list(names.SNAPSHOTS)) == []
        store.delete(whole_move())
        assert list(bucket.list()) == [ObjectInfo("packs/other", 6)]

    def test_tags_and_misnamed_moves_are_no_versions(self) -> None:
        good = whole_move()
        assert version_in(good) == A
        for name in (
            good.replace("/heads/", "/tags/"),
            good.replace(".step", ".ref"),
            f"{names.HEADS}main/000000000001.step",
            f"{names.HEADS}{good.rpartition('/')[2]}",
            f"other/{good}",
        ):
            assert version_in(name) is None


class TestForgetting:
    def test_moves_that_listings_have_lacked_for_long_are_forgotten(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Time()
        monkeypatch.setattr("casweights.database.version_names.time", clock)
        store = VersionNames(bucket)
        for number in range(1000):
            move = whole_move(SnapshotId(b"%032d" % number), number + 1)
            store.put(move, [b"version"])
            bucket.copy(move, names.snapshot_name(SnapshotId(b"%032d" % number)))
            bucket.delete(move)
            clock.sleep(1)
            list(store.list(f"{names.HEADS}main/"))
        assert len(store._known._of) == len(store._known._seen) <= 63

    def test_a_damaged_move_gives_way_to_a_sound_copy(
        self, store: VersionNames, bucket: Bucket
    ) -> None:
        bucket.put(NAME, [b"the sound one"])
        assert store.get(NAME) == b"the sound one"
        list(store.list(names.HEADS))
        assert store.get(NAME) == b"the version"
        store.forget(NAME)
        assert store.get(NAME) == b"the sound one"


class TestRemoving:
    """A version outlives its move."""

    def test_deleting_a_move_keeps_the_version(self, store: VersionNames, bucket: Bucket) -> None:
        store.delete(whole_move())
        assert bucket.get(NAME) == store.get(NAME) == b"the version"
        assert not bucket.exists(whole_move())

    def test_many_are_copied_together_and_then_deleted_together(
        self, store: VersionNames, bucket: Bucket
    ) -> None:
        moves = [whole_move(SnapshotId(b"%032d" % n), n) for n in range(1, 101)]
        for number, move in enumerate(moves):
            bucket.put(move, [b"version %d" % number])
        bucket.calls.clear()
        store.delete_all(moves)
        calls = [call for call in bucket.calls if not call.startswith(("put", "delete refs"))]
        assert calls == ["copy 100", "delete 100"]
        assert store.get(names.snapshot_name(SnapshotId(b"%032d" % 7))) == b"version 6"

    @pytest.mark.parametrize("call", range(1, 8))
    @pytest.mark.parametrize("answered", [True, False])
    def test_it_survives_a_failure_of_any_call(
        self, bucket: Bucket, call: int, answered: bool
    ) -> None:
        moves = [whole_move(), whole_move(B, 2)]
        bucket.put(moves[1], [b"another"])
        faulty = FaultyStore(bucket, [Fault(call=call, after=not answered)])
        with suppress(StoreError):
            VersionNames(faulty).delete_all(moves)
        for store in (VersionNames(bucket), VersionNames(faulty)):
            assert store.get(NAME) == b"the version"
            assert store.get(names.snapshot_name(B)) == b"another"
        VersionNames(bucket).delete_all(moves)
        assert [info.name for info in bucket.list()] == [
            "packs/other",
            NAME,
            names.snapshot_name(B),
        ]

    def test_two_clients_may_remove_the_same_moves_at_once(self, bucket: Bucket) -> None:
        moves = [whole_move(SnapshotId(b"%032d" % n), n) for n in range(1, 30)]
        for move in moves:
            bucket.put(move, [move.encode()])
        threads = [
            threading.Thread(target=VersionNames(bucket).delete_all, args=[moves[n:]])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store = VersionNames(bucket)
        assert not list(bucket.list(f"{names.HEADS}main/0000000000020"))
        for number, move in enumerate(moves, 1):
            assert store.get(names.snapshot_name(SnapshotId(b"%032d" % number))) == move.encode()

    def test_a_move_that_another_client_removed_is_no_error(
        self, store: VersionNames, bucket: Bucket
    ) -> None:
        gone = whole_move(B, 2)
        store.delete_all([gone, whole_move()])
        assert bucket.exists(NAME)
        assert not bucket.exists(names.snapshot_name(B))

    def test_its_frames_replace_a_bare_object_of_that_name(
        self, store: VersionNames, bucket: Bucket
    ) -> None:
        bucket.put(NAME, [b"bare"])
        store.delete(whole_move())
        assert bucket.get(NAME) == b"the version"

    def test_a_bare_move_does_not_replace_frames(self, store: VersionNames, bucket: Bucket) -> None:
        bucket.put(NAME, [b"the version and its frames"])
        store.delete(whole_move())
        assert bucket.get(NAME) == b"the version and its frames"

    def test_the_version_goes_under_its_own_name(self, store: VersionNames, bucket: Bucket) -> None:
        again = whole_move(A, 2, "1" * 16)
        bucket.put(again, [b"the version"])
        bucket.copy(again, NAME)
        store.delete(NAME)
        assert [info.name for info in bucket.list()] == ["packs/other"]
        assert not store.exists(NAME)


class TestAbilities:
    def test_locators_are_those_of_the_move(self) -> None:
        class Located(Bucket):
            used: tuple[str, bytes] | None = None

            def locator(self, name: str) -> bytes | None:
                return name.encode() if self.exists(name) else None

            def use_locator(self, name: str, locator: bytes) -> None:
                self.used = name, locator

        bucket = Located()
        store = VersionNames(bucket)
        able = store.ability(SupportsLocators)
        assert able is store
        store.use_locator(NAME, b"far")
        assert bucket.used == (NAME, b"far")
        store.put(whole_move(), [b"the version"])
        assert able.locator(NAME) == whole_move().encode()
        able.use_locator(NAME, b"near")
        assert bucket.used == (whole_move(), b"near")

    def test_announced_ranges_are_those_of_the_move(self, bucket: Bucket) -> None:
        reads = []

        class Noting(WrapperStore):
            def readinto(self, name: str, start: int, out: memoryview) -> None:
                reads.append(name)
                self.inner.readinto(name, start, out)

        store = VersionNames(ReadaheadStore(Noting(bucket), 1 << 20))
        list(store.list(names.HEADS))
        with ahead(store) as announce:
            announce([[(NAME, 0, 3), (NAME, 4, 11)]])
            assert store.get(NAME, 4, 7) == b"version"
            assert store.get(NAME, 0, 3) == b"the"
        assert reads == [whole_move()]

    def test_copies_find_the_version(self, store: VersionNames, bucket: Bucket) -> None:
        able = store.ability(SupportsCopy)
        assert able is store
        assert able.copy(NAME, "fossils/a")
        assert bucket.get("fossils/a") == b"the version"

    def test_another_store_copies_it_under_its_own_name(self, store: VersionNames) -> None:
        target = VersionNames(Bucket())
        target.copy_from(store, [NAME, "packs/other"])
        assert target.inner.get(NAME) == b"the version"
        target = VersionNames(MemoryStore(), has_refs=False)
        target.copy_from(store, [NAME])
        assert target.inner.get(NAME) == b"the version"
        with pytest.raises(NotFoundError):
            target.copy_from(store, [names.snapshot_name(B)])


def test_every_method_that_takes_a_name_is_translated() -> None:
    """Methods that `ObjectStore` gains later must not read past the moves."""
    named = [
        name
        for name, method in vars(ObjectStore).items()
        if callable(method) and {"name", "names"} & signature(method).parameters.keys()
    ]
    assert len(named) > 10
    assert {*named} - vars(VersionNames).keys() == {"require"}  # which takes no version


class TestConformance(StoreTests):
    @pytest.fixture
    def store(self) -> VersionNames:
        return VersionNames(VersatileStore())


class TestLogs:
    """Moves of branches that are versions."""

    @pytest.fixture(autouse=True)
    def no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("casweights.database.reflog.time", Time())

    @pytest.fixture
    def bucket(self) -> Bucket:
        return Bucket()

    def advance(self, refs: Refs, head: Head | None, snapshot: SnapshotId) -> Head:
        return refs.advance("main", head, snapshot, Version([b"object of ", bytes(snapshot)]))

    def check_kept(self, bucket: Bucket, *snapshots: SnapshotId) -> None:
        for snapshot in snapshots:
            stored = VersionNames(bucket).get(names.snapshot_name(snapshot))
            assert stored == b"object of " + bytes(snapshot)

    def test_only_stores_that_copy_and_have_no_exclusive_create_take_versions(self) -> None:
        plain = MemoryStore()
        plain.capabilities = Capabilities(exclusive_create=False)
        for store, takes in ((Bucket(), True), (VersatileStore(), False), (plain, False)):
            assert Refs(VersionNames(store)).takes_versions is takes

    def test_one_put_adds_the_version_and_moves_the_branch(
        self, bucket: Bucket, store: VersionNames
    ) -> None:
        refs = Refs(store)
        self.advance(refs, None, A)
        puts = [call.split()[1] for call in bucket.calls if call.startswith("put")]
        [info] = bucket.list()
        assert puts == [info.name]
        move = parse_move(info, names.HEADS)
        assert (move.is_whole, move.snapshot, move.position) == (True, A, 1)
        assert Refs(VersionNames(bucket)).head("main") == Head("main", 1, A)
        assert Refs(VersionNames(bucket)).target(info) == A
        self.check_kept(bucket, A)

    def test_a_version_that_lost_the_race_stays(self, bucket: Bucket, store: VersionNames) -> None:
        first = self.advance(Refs(store), None, A)
        rival = Refs(VersionNames(bucket))
        self.advance(Refs(store), first, B)
        with pytest.raises(ConflictError) as caught:
            self.advance(rival, first, C)
        assert caught.value.snapshot == C
        assert Refs(store).displaced() == {}
        assert bucket.get(names.snapshot_name(C))
        self.check_kept(bucket, A, B, C)

    def test_versions_of_removed_moves_stay(self, bucket: Bucket, store: VersionNames) -> None:
        refs, head = Refs(store), None
        versions = [SnapshotId(b"%032d" % number) for number in range(250)]
        for snapshot in versions:
            head = self.advance(refs, head, snapshot)
        assert len(RefLog(store, names.HEADS).moves("main")) == 150
        assert len(list(bucket.list(names.SNAPSHOTS))) == 100
        self.check_kept(bucket, *versions)
        assert len(list(store.list(names.SNAPSHOTS))) == 250

    def test_versions_of_a_deleted_branch_stay(self, bucket: Bucket, store: VersionNames) -> None:
        refs, head = Refs(store), None
        for snapshot in (A, B, C):
            head = self.advance(refs, head, snapshot)
        refs.delete_branch("main")
        assert not list(bucket.list(names.HEADS))
        self.check_kept(bucket, A, B, C)

    def test_a_dropped_version_stays(self, bucket: Bucket, store: VersionNames) -> None:
        refs = Refs(store)
        first = self.advance(refs, None, A)
        off = names.move_name(names.HEADS, "main", 2, C, A, "f" * 16, names.STEP_SUFFIX)
        self.advance(refs, first, B)
        bucket.put(off, [b"object of ", bytes(C)])
        assert [each.snapshot for each in refs.displaced()["main"]] == [C]
        assert refs.drop_displaced(C)
        assert refs.displaced() == {}
        self.check_kept(bucket, A, B, C)

    @pytest.mark.parametrize("after", [False, True], ids=["lost", "unanswered"])
    def test_the_outcome_of_a_failed_put_is_found_out(self, bucket: Bucket, after: bool) -> None:
        faulty = FaultyStore(bucket)
        refs = Refs(VersionNames(faulty))
        head = self.advance(refs, None, A)
        faulty.unused.append(Fault(call=len(faulty.calls) + 1, after=after))
        if after:
            head = self.advance(refs, head, B)
        else:
            with pytest.raises(StoreError):
                self.advance(refs, head, B)
            head = self.advance(refs, refs.head("main", for_update=True), B)
        assert head == Refs(VersionNames(bucket)).head("main") == Head("main", 2, B)
        self.check_kept(bucket, A, B)
