"""Versions whose object is a move of a branch have the name of a version all the same."""

from __future__ import annotations

import threading
from contextlib import suppress
from inspect import signature
from typing import TYPE_CHECKING

import pytest

from casweights.config import StoreConfig
from casweights.database.moves import version_in
from casweights.database.version_names import VersionNames
from casweights.errors import NotFoundError, StoreError
from casweights.format import names
from casweights.ids import SnapshotId
from casweights.stores.base import ObjectInfo, ObjectStore
from casweights.stores.memory import MemoryStore
from casweights.stores.optional import SupportsCopy, SupportsLocators, ahead
from casweights.stores.readahead import ReadaheadStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing import StoreTests
from casweights.testing.faults import Fault, FaultyStore
from casweights.testing.versatile import VersatileStore
from tests.copying_bucket import Bucket
from tests.histories import CHUNK
from tests.waiting import Time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


A, B, C, D = (SnapshotId(bytes([digit]) * 32) for digit in (0xAA, 0xBB, 0xCC, 0xDD))
CONFIG = StoreConfig(chunk_size=CHUNK)
NAME = names.snapshot_name(A)


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
    "read_end": lambda store: store.read_end(NAME, 7) == (b"version", 11),
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
