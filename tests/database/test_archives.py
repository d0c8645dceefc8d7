"""Versions are found in archives, however large these are, and damage hides none silently."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from casweights.config import KiB
from casweights.database.archives import Archives
from casweights.database.expired import ExpiredStore
from casweights.errors import NotFoundError
from casweights.format.archive import ENDING_SIZE, ROW_SIZE, build_archive
from casweights.ids import SnapshotId
from casweights.stores.base import Capabilities
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.faults import flip_bit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.format.archive import SealedArchive
    from casweights.stores.base import ObjectInfo, ObjectStore


def ids(count: int, salt: str = "") -> list[SnapshotId]:
    return [SnapshotId(hashlib.sha256(f"{salt}{n}".encode()).digest()) for n in range(count)]


def content(snapshot: SnapshotId) -> bytes:
    return b"the version " + snapshot[:8]


def put(store: ObjectStore, snapshots: Iterable[SnapshotId], generation: int = 1) -> SealedArchive:
    sealed = build_archive({snapshot: content(snapshot) for snapshot in snapshots}, generation)
    store.put(sealed.name, sealed.parts)
    return sealed


class FarStore(MemoryStore):
    capabilities = Capabilities(cheap_reads=False)


def read(archives: Archives, snapshot: SnapshotId) -> bytes:
    [place] = archives.locate([snapshot])[snapshot]
    return archives.read(place)


@pytest.fixture(params=[MemoryStore, FarStore])
def store(request: pytest.FixtureRequest) -> CountingStore:
    return CountingStore(request.param())


def reads(store: CountingStore) -> Sequence[tuple[str, int]]:
    """Return all reads since the last call."""
    found = list(store.reads)
    store.reset()
    return found


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let archives of 3,000 versions count as large ones."""
    monkeypatch.setattr("casweights.database.archives._TAIL_BYTES", KiB)
    monkeypatch.setattr("casweights.database.archives._WHOLE_ROWS", KiB)


class Merging(CountingStore):
    """A store in which an archive is merged right after a listing has shown it."""

    old: str | None = None
    times = 1

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        listed = list(super().list(prefix))
        if self.old is not None and self.times:
            self.times -= 1
            sealed = put(self.inner, ids(50), generation=10 - self.times)
            self.inner.delete(self.old)
            self.old = sealed.name
        return iter(listed)


@pytest.mark.parametrize("far", [MemoryStore, FarStore])
@pytest.mark.parametrize("how", ["ids", "locate", "present", "load"])
def test_versions_are_found_while_archives_are_merged(far: type[MemoryStore], how: str) -> None:
    store = Merging(far())
    store.old = put(store.inner, ids(50)).name
    archives, wanted = Archives(store, ExpiredStore(store)), ids(50)[7]

    def own(_: bool) -> bytes:
        return store.get(f"snapshots/{wanted}")

    if how == "load":
        assert archives.load(wanted, own, lambda data, _: data) == content(wanted)
    elif how == "locate":
        assert wanted in archives.locate([wanted])
    elif how == "present":
        assert archives.present([wanted]) == {wanted}
    else:
        assert set(archives.ids()) == set(ids(50))


def test_versions_of_several_archives_are_found(store: CountingStore) -> None:
    old, new = ids(50, "old"), ids(3, "new")
    put(store, old)
    put(store, new)
    archives = Archives(store, ExpiredStore(store))
    assert set(archives.locate([*old, *new, *ids(5, "other")])) == {*old, *new}
    for snapshot in (*old, *new):
        assert read(archives, snapshot) == content(snapshot)
    assert set(archives.ids()) == {*old, *new}


def test_a_small_archive_costs_one_read_of_rows(store: CountingStore) -> None:
    snapshots = ids(100)
    put(store, snapshots)
    archives = Archives(store, ExpiredStore(store))
    reads(store)
    for snapshot in snapshots:
        assert archives.locate([snapshot])
    is_cheap = store.capabilities.cheap_reads
    assert len(reads(store)) == 1 + is_cheap  # the end, and perhaps the first bytes


def test_versions_of_a_large_archive_are_found_by_small_reads(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    snapshots = ids(3000)
    put(store, snapshots)
    for snapshot in snapshots[::100]:
        archives = Archives(store, ExpiredStore(store))
        reads(store)
        assert archives.locate([snapshot])[snapshot][0].member.snapshot == snapshot
        windows = [nbytes for _, nbytes in reads(store)]
        assert len(windows) == 2
        assert sum(windows) < 3000 * ROW_SIZE // 5


def test_many_look_ups_read_all_rows_once(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    snapshots = ids(3000)
    put(store, snapshots)
    archives = Archives(store, ExpiredStore(store))
    reads(store)
    for snapshot in snapshots:
        assert archives.known(snapshot) or archives.locate([snapshot])
    assert sum(nbytes for _, nbytes in reads(store)) < 2 * 3000 * ROW_SIZE


def test_beginnings_of_ids_are_found_in_a_large_archive(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    snapshots = ids(3000)
    put(store, snapshots)
    for prefix in ("", "7", "7a", str(snapshots[0])[:7], str(snapshots[0])):
        expected = {snapshot for snapshot in snapshots if str(snapshot).startswith(prefix)}
        assert set(Archives(store, ExpiredStore(store)).ids(prefix)) == expected
    assert Archives(store, ExpiredStore(store)).ids("0123456") == []


@pytest.mark.parametrize("first", [0, 255])
def test_ids_that_are_not_evenly_distributed_are_found(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    shrink(monkeypatch)
    snapshots = [SnapshotId(bytes([first, first]) + snapshot[2:]) for snapshot in ids(3000)]
    put(store, snapshots)
    for snapshot in (min(snapshots), max(snapshots), snapshots[7]):
        assert Archives(store, ExpiredStore(store)).locate([snapshot])


def test_a_new_archive_is_found_by_an_open_handle(store: CountingStore) -> None:
    archives = Archives(store, ExpiredStore(store))
    [snapshot] = ids(1)
    assert archives.locate([snapshot]) == {}
    put(store, [snapshot])
    assert archives.known(snapshot) == []
    assert read(archives, snapshot) == content(snapshot)


def test_a_version_is_found_again_after_its_archive_was_merged(store: CountingStore) -> None:
    one, two = ids(2)
    first, second = put(store, [one]), put(store, [two])
    archives = Archives(store, ExpiredStore(store))
    [place] = archives.locate([one])[one]
    put(store, [one, two], generation=2)
    store.delete_all([first.name, second.name])
    with pytest.raises(NotFoundError):
        archives.read(place)
    assert read(archives, one) == content(one)


def test_a_damaged_archive_is_named_and_hides_no_other(store: CountingStore) -> None:
    one, two = ids(2)
    sealed = put(store, [one])
    put(store, [two])
    flip_bit(store, sealed.name, sealed.size - ENDING_SIZE - 1)
    archives = Archives(store, ExpiredStore(store))
    assert set(archives.locate([one, two])) == {two}
    assert list(archives.damaged) == [sealed.name]
    store.delete(sealed.name)
    put(store, [one, two])
    assert set(archives.locate([one, two])) == {one, two}
    assert archives.damaged == {}


def test_a_damaged_row_of_a_large_archive_is_noticed_before_a_version_counts_as_missing(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    snapshots = ids(3000)
    sealed = put(store, snapshots)
    row = sealed.members[1234]
    at = sealed.size - ENDING_SIZE - (3000 - 1234) * ROW_SIZE
    flip_bit(store, sealed.name, at)
    archives = Archives(store, ExpiredStore(store))
    assert archives.locate([row.snapshot]) == {}
    assert list(archives.damaged) == [sealed.name]


def test_neighbours_are_read_together_over_a_network() -> None:
    store = CountingStore(FarStore())
    snapshots = ids(500)
    put(store, snapshots)
    archives = Archives(store, ExpiredStore(store))
    places = archives.locate(snapshots)
    reads(store)
    for snapshot in reversed(snapshots):  # as `log` goes
        assert archives.read(places[snapshot][0]) == content(snapshot)
    assert len(reads(store)) == 1


def test_other_names_in_the_folder_are_passed_over(store: CountingStore) -> None:
    store.put("versions/readme", [b"nothing"])
    [snapshot] = ids(1)
    put(store, [snapshot])
    assert Archives(store, ExpiredStore(store)).ids() == [snapshot]
