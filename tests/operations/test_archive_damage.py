"""Damaged archives stay until they are repaired, and nothing is deleted in their favour."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.errors import IntegrityError
from casweights.format import names
from casweights.operations import archiving, merging
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.archived import (
    OLD,
    Versions,
    archives,
    copy_of,
    history,
    maintain,
    merge_archives,
    oldest,
    own,
    store,
    versions,
)
from tests.histories import check_versions

if TYPE_CHECKING:
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore
    from casweights.stores.memory import MemoryStore

__all__ = ["history", "store", "versions"]  # fixtures

AT_ONCE = timedelta(0)  # leaves no other copy aside


def test_a_damaged_snapshot_object_stays(store: MemoryStore, versions: Versions) -> None:
    damaged = names.snapshot_name(list(versions)[5])
    flip_bit(store, damaged, store.size(damaged) - 20)
    assert maintain(store).archived == OLD - 1
    assert damaged in own(store)
    with casweights.open(store) as repo, pytest.raises(IntegrityError, match=damaged):
        repo.load(list(versions)[5])


def test_nothing_is_deleted_in_favour_of_a_damaged_archive(
    store: MemoryStore, versions: Versions
) -> None:
    written = copy_of(store)
    maintain(written)
    [archive] = archives(written)
    store.put(archive, [written.get(archive)])
    flip_bit(store, archive, 100)
    before = own(store)
    maintain(store)
    assert own(store) == before
    store.delete(archive)
    assert maintain(store).archived == OLD
    check_versions(store, versions)


def test_a_damaged_archive_is_not_merged(
    store: MemoryStore, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FAN_IN", 1)
    with casweights.open(store) as repo:
        for info in list(store.list(names.SNAPSHOTS))[:9]:
            archiving.archive(repo.database, [info])
        damaged = min(archives(store))
        flip_bit(store, damaged, 30)
        merge_archives(repo)
    assert damaged in archives(store)
    assert len(archives(store)) == 2


def test_a_sound_copy_is_read_if_another_is_damaged(store: MemoryStore, versions: Versions) -> None:
    before = copy_of(store)
    maintain(store, AT_ONCE)
    [archive] = archives(store)
    old = oldest(versions)
    with casweights.open(store) as repo:
        place = repo.database.snapshots.archives.locate([old])[old][0]
    flip_bit(store, archive, place.member.offset + 30)
    with casweights.open(store) as repo, pytest.raises(IntegrityError, match=archive):
        repo.load(old)
    store.put(names.snapshot_name(old), [before.get(names.snapshot_name(old))])
    with casweights.open(store) as repo:
        assert repo.database.snapshots.archives.locate([old])
        assert_same_state(repo.load(old), versions[old])


def test_a_missing_version_is_told_from_one_in_a_damaged_archive(
    store: MemoryStore, versions: Versions
) -> None:
    maintain(store, AT_ONCE)
    [archive] = archives(store)
    flip_bit(store, archive, store.size(archive) - 30)
    with casweights.open(store) as repo:
        with pytest.raises(IntegrityError, match=archive):
            repo.database.snapshots.load(oldest(versions))
        assert_same_state(repo.load("main"), list(versions.values())[-1])


def break_version(store: ObjectStore, version: SnapshotId) -> str:
    """Damage a version in the only archive; return the archive's name."""
    [archive] = archives(store)
    with casweights.open(store) as repo:
        [place] = repo.database.snapshots.archives.locate([version])[version]
    flip_bit(store, archive, place.member.offset + 30)
    return archive


def test_a_push_and_a_repack_repair_a_damaged_archive(
    store: MemoryStore, versions: Versions
) -> None:
    source, lost = copy_of(store), list(versions)[7]
    maintain(store, AT_ONCE)
    archive = break_version(store, lost)
    with casweights.open(store) as repo, casweights.open(source) as other:
        problems = [str(problem) for problem in repo.verify().problems]
        assert any(archive in text and "casweights push ID" in text for text in problems)
        assert any(str(lost) in text for text in problems)
        with pytest.raises(IntegrityError, match=str(lost)):
            repo.repack()  # it replaces nothing, because the version is nowhere else
        assert archive in archives(store)
        assert other.push(repo, refs=[str(lost)]).snapshots == 1
        assert_same_state(repo.load(lost), versions[lost])
        repo.repack()
    assert archive not in archives(store)
    check_versions(store, versions)


def test_an_archive_without_rows_is_replaced_by_hand(
    store: MemoryStore, versions: Versions
) -> None:
    source = copy_of(store)
    maintain(store)
    [archive] = archives(store)
    flip_bit(store, archive, store.size(archive) - 30)
    with casweights.open(store) as repo, casweights.open(source) as other:
        problems = [str(problem) for problem in repo.verify().problems]
        assert any(archive in text and "delete the archive" in text for text in problems)
        assert other.push(repo, unnamed=True).snapshots == OLD
        store.delete(archive)
    check_versions(store, versions)
