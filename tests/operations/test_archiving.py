"""Old versions move into archives, and nothing else changes."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import NotFoundError, Publisher, Subscriber
from casweights.database.reflog import RECENT_MOVES
from casweights.errors import ErrorCode, StoreError
from casweights.format import names
from casweights.operations import archiving, merging
from casweights.operations.archiving import archive, old_versions
from casweights.stores.hub.store import HubStore
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing import CountingStore
from casweights.testing.faults import FaultyStore
from casweights.testing.hub import LocalHub
from casweights.testing.states import assert_same_state
from tests.archived import (
    CONFIG,
    OLD,
    Versions,
    archives,
    copy_of,
    history,
    keep_few,
    maintain,
    merge_archives,
    names_in,
    oldest,
    own,
    store,
    versions,
)
from tests.histories import check_versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectInfo, ObjectStore, Parts

__all__ = ["history", "store", "versions"]  # fixtures


def test_old_versions_share_an_archive(store: MemoryStore, versions: Versions) -> None:
    stats = maintain(store)
    assert (stats.archived, stats.archives) == (OLD, 1)
    newest = list(versions)[-RECENT_MOVES:]
    assert own(store) == {names.snapshot_name(version) for version in newest}
    assert len(archives(store)) == 1
    check_versions(store, versions)


def test_the_log_of_a_branch_is_shortened(store: MemoryStore) -> None:
    maintain(store)
    assert len(names_in(store, names.HEADS)) == RECENT_MOVES


def test_all_look_ups_see_archived_versions(store: MemoryStore, versions: Versions) -> None:
    maintain(store)
    old = oldest(versions)
    with casweights.open(store) as repo:
        assert repo.resolve(str(old)) == repo.resolve(str(old)[:9]) == old
        assert repo.resolve("first") == list(versions)[3]
        assert repo.resolve(f"main~{len(versions) - 1}") == old
        assert [version.id for version in repo.log("main")] == list(versions)[::-1]
        assert set(repo.database.snapshots.ids()) == set(versions)
        assert repo.stats().versions[0].id == old
        with pytest.raises(NotFoundError, match="has no snapshot"):
            repo.resolve("0" * 64)


def test_maintaining_twice_does_nothing_the_second_time(store: MemoryStore) -> None:
    maintain(store)
    before = names_in(store, "")
    assert maintain(store).archived == 0
    assert names_in(store, "") == before


def test_few_old_versions_stay(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FAN_IN", OLD + 1)
    before = own(store)
    assert maintain(store).archived == 0
    assert own(store) == before


def test_archives_are_merged_by_size(
    store: MemoryStore, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FAN_IN", 1)
    with casweights.open(store) as repo:
        objects = sorted(store.list(names.SNAPSHOTS), key=lambda info: info.name)
        for info in objects[:9]:
            archiving.archive(repo.database, [info])
        assert len(archives(store)) == 9
        merge_archives(repo)
        assert len(archives(store)) == 1
        for version, state in versions.items():
            assert_same_state(repo.load(version), state)
    check_versions(store, versions)


def test_a_version_of_another_branch_keeps_its_object_while_the_branch_names_it(
    store: MemoryStore, versions: Versions
) -> None:
    with casweights.open(store) as repo:
        repo.branch("other", list(versions)[1])
        assert repo.maintain().archived == OLD - 1
    assert names.snapshot_name(list(versions)[1]) in own(store)


def test_an_open_handle_goes_on_after_maintenance_by_others(
    store: MemoryStore, versions: Versions
) -> None:
    old = oldest(versions)
    with casweights.open(store) as one:
        assert_same_state(one.load("main"), list(versions.values())[-1])
        maintain(store)
        assert_same_state(one.load(old), versions[old])
        state = {"w": versions[old]["w"] + 7}
        made = one.commit(state, branch="fork", parent=old)
        assert made.parents == (old,)
    check_versions(store, versions | {made.id: state})


def test_a_publisher_and_a_subscriber_go_on(store: MemoryStore, versions: Versions) -> None:
    live = {"w": torch.zeros(64)}
    with Publisher(store) as publisher, Subscriber(store) as subscriber:
        subscriber.sync(live)
        for n in range(3):
            state = {"w": list(versions.values())[n]["w"] * 2}
            publisher.publish(state)
            publisher.wait()
            maintain(store)
            subscriber.sync(live)
            assert_same_state(live, state)


def test_archived_versions_are_pushed_and_pulled(store: MemoryStore, versions: Versions) -> None:
    maintain(store)
    target = MemoryStore()
    casweights.open(target, create=True, config=CONFIG).close()
    with casweights.open(store) as repo, casweights.open(target) as other:
        assert repo.push(other).snapshots == len(versions)
    maintain(target)
    check_versions(target, versions)
    with casweights.open(store) as repo, casweights.open(target) as other:
        state = {"w": torch.ones(3)}
        made = other.commit(state, branch="fork", parent=oldest(versions))
        assert repo.pull(other, refs=["fork"]).snapshots == 1
    check_versions(store, versions | {made.id: state})


@pytest.mark.parametrize("is_target", [False, True])
def test_a_push_goes_on_while_versions_move_into_archives(
    store: MemoryStore, versions: Versions, is_target: bool
) -> None:
    """Either store is maintained when about half of the versions are copied."""
    target = MemoryStore()
    casweights.open(target, create=True, config=CONFIG).close()

    class Maintained(WrapperStore):
        left = OLD // 2

        def put(self, name: str, parts: Parts) -> bool:
            created = self.inner.put(name, parts)
            self.left -= name.startswith(names.SNAPSHOTS)
            if self.left == 0:
                maintain(target if is_target else store)
            return created

    with casweights.open(store) as repo, casweights.open(Maintained(target)) as other:
        assert repo.push(other).snapshots == len(versions)
    assert archives(target if is_target else store)
    check_versions(target, versions)


def test_a_version_that_moves_while_it_is_copied_is_copied_from_its_archive(
    store: MemoryStore, versions: Versions
) -> None:
    class Moving(WrapperStore):
        objects = 0

        def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
            self.objects += name.startswith(names.SNAPSHOTS) and size is None
            if self.objects == OLD // 2:
                maintain(store)
            return self.inner.get(name, start, size)

    target, moving = MemoryStore(), Moving(store)
    casweights.open(target, create=True, config=CONFIG).close()
    with casweights.open(moving) as repo, casweights.open(target) as other:
        assert repo.push(other).snapshots == len(versions)
    assert archives(store)
    check_versions(target, versions)


def test_a_version_that_is_made_during_maintenance_stays(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_few(monkeypatch, 1)
    made: list[SnapshotId] = []

    class Busy(WrapperStore):
        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            if prefix == names.SNAPSHOTS and not made:
                with casweights.open(store) as other:
                    made.append(other.commit({"w": torch.ones(2)}).id)
            return self.inner.list(prefix)

    with casweights.open(Busy(store)) as repo:
        archive(repo.database, old_versions(repo.database))
    assert names.snapshot_name(made[0]) in own(store)


def test_a_version_that_an_archive_has_is_not_pushed_again(
    store: MemoryStore, versions: Versions
) -> None:
    target = copy_of(store)
    maintain(target)
    with casweights.open(store) as repo, casweights.open(target) as other:
        assert repo.push(other, refs=[str(oldest(versions))]).snapshots == 0


class Stopping(WrapperStore):
    """A store that fails from its `last`-th change on."""

    def __init__(self, inner: ObjectStore, last: int) -> None:
        super().__init__(inner)
        self._left = last

    def _change(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise StoreError(ErrorCode.IO_FAILED, "stopped")

    def put(self, name: str, parts: Parts) -> bool:
        self._change()
        return self.inner.put(name, parts)

    def delete(self, name: str) -> None:
        self._change()
        self.inner.delete(name)


def test_maintenance_that_stops_at_any_change_loses_nothing_and_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep_few(monkeypatch)
    store, versions = MemoryStore(), {}
    with casweights.open(store, create=True, config=CONFIG) as repo:
        for n in range(7):
            state = {"w": torch.arange(64.0) + n}
            versions[repo.commit(state).id] = state
        archiving.archive(repo.database, list(store.list(names.SNAPSHOTS))[:1])
    for last in itertools.count():
        damaged = copy_of(store)
        with contextlib.suppress(StoreError):
            maintain(Stopping(damaged, last))
            break
        check_versions(damaged, versions)
        maintain(damaged)
        assert len(own(damaged)) <= 2  # the last version, and one that is too few to move
        check_versions(damaged, versions)
    assert last > 10  # moves, a pack, two archives, and objects


def test_versions_in_a_bucket_are_archived(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_few(monkeypatch)
    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        store = RetryStore(HubStore("me/weights", "run", endpoint=hub.url))
        versions = {}
        with casweights.open(store, create=True, config=CONFIG) as repo:
            for n in range(5):
                state = {"w": torch.arange(64.0) + n}
                versions[repo.commit(state).id] = state
            assert repo.maintain().archived == 4
            versions[repo.commit({"w": torch.ones(3)}).id] = {"w": torch.ones(3)}
        again = RetryStore(HubStore("me/weights", "run", endpoint=hub.url))
        assert len(archives(again)) == 1
        check_versions(again, versions)


@pytest.mark.parametrize("folder", [names.ARCHIVES, names.SNAPSHOTS])
def test_two_maintenances_at_once_lose_nothing(
    store: MemoryStore, versions: Versions, folder: str
) -> None:
    """The second one does everything while the first one is about to write or delete."""

    class Late(FaultyStore):
        done = False

        def _other(self, name: str) -> None:
            if name.startswith(folder) and not self.done:
                self.done = True
                maintain(store)

        def put(self, name: str, parts: object) -> bool:
            self._other(name)
            return super().put(name, parts)  # type: ignore[arg-type]

        def delete_all(self, names: list[str]) -> None:  # type: ignore[override]
            self._other(names[0])
            super().delete_all(names)

    late = Late(store, [])
    maintain(late)
    assert late.done
    check_versions(store, versions)


def test_reading_an_old_version_again_looks_for_no_object_of_its_own(
    store: MemoryStore, versions: Versions
) -> None:
    maintain(store)
    counting = CountingStore(store)
    with casweights.open(counting) as repo:
        repo.load(oldest(versions))
        counting.reset()
        repo.database.snapshots.load_stored(list(versions)[1])
        assert all(name in archives(store) for name, _ in counting.reads)


def test_a_repack_leaves_archived_versions_readable(store: MemoryStore, versions: Versions) -> None:
    maintain(store)
    with casweights.open(store) as repo:
        repo.repack()
        for version, state in versions.items():
            assert_same_state(repo.load(version), state)
    check_versions(store, versions)
