"""Damaged and forged records of expired versions, and policies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from casweights import Keep
from casweights.errors import (
    IntegrityError,
    UnsupportedError,
)
from casweights.format import names
from casweights.format.envelope import ObjectKind, seal
from casweights.format.expired import encode_records
from casweights.format.hashing import blake3_256, checksum
from casweights.format.manifest import EncodedSnapshot
from casweights.ids import SnapshotId
from casweights.results import ExpiredVersion
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.expiring import (
    COUNT,
    KEEP,
    START,
    STAY,
    fill,
    ids,
    numbers,
    open_store,
    state,
    store,
    target,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights import Repository
    from casweights.stores.base import ObjectStore


__all__ = ["ids", "store", "target"]


def forge(store: ObjectStore, rows: Sequence[ExpiredVersion]) -> None:
    for record in encode_records(rows):
        store.put(record.name, [record.data])


def row(snapshot: SnapshotId, number: int, *parents: SnapshotId) -> ExpiredVersion:
    return ExpiredVersion(id=snapshot, number=number, parents=parents, time=START, policy="forged")


def test_a_forged_record_hides_no_head_and_no_tag(
    store: ObjectStore, ids: list[SnapshotId], target: Repository
) -> None:
    with open_store(store) as repo:
        repo.tag("v1", str(ids[5]))
        repo.branch("side", str(ids[7]))
    forge(store, [row(snapshot, n, *ids[n - 2 : n - 1]) for n, snapshot in enumerate(ids, 1)])
    with open_store(store) as repo:
        assert numbers(repo) == [12, 8, 6]
        assert numbers(repo, "side") == [8, 6]
        assert repo.resolve("main~6") == ids[5]
        assert_same_state(repo.load("v1"), state(6))
        repo.push(target)
        assert target.tags() | target.branches() == repo.tags() | repo.branches()
        assert numbers(target) == [12, 8, 6]


@pytest.mark.parametrize("way", ["in a circle", "to another history", "ahead"])
def test_a_forged_record_leads_to_no_other_history_and_in_no_circle(
    store: ObjectStore, ids: list[SnapshotId], way: str
) -> None:
    with open_store(store) as repo:
        other = repo.commit(state(50), branch="other").id
    to = {"in a circle": ids[10], "to another history": other, "ahead": ids[3]}[way]
    forge(store, [row(ids[9], 10, to)])
    with open_store(store) as repo:
        log = repo.log()
        assert next(log).number == 12
        with pytest.raises(IntegrityError, match="record in expired/ is wrong"):
            list(log)
        with pytest.raises(IntegrityError, match="record in expired/ is wrong"):
            repo.expire(KEEP)
        [problem] = repo.verify().problems
        assert f"{ids[9]} expired has another number or parent" in problem.message


def test_forged_versions_and_records_make_no_endless_circle() -> None:
    """B has the parent X, and a record leads from the parent of X, which never existed, to B."""
    store = MemoryStore()
    ids = fill(store, 2)
    with open_store(store) as repo:
        db = repo.database
        never = SnapshotId(bytes(32))
        first = repo.snapshot(ids[0])
        made: list[SnapshotId] = []
        for number, parent in ((10, never), (8, None)):
            manifest = replace(first, number=number, parents=(parent or made[0],))
            encoded = EncodedSnapshot.of(manifest)
            stored, parts = db.snapshots.encode(*encoded)
            db.snapshots.save(stored, parts)
            made.append(encoded.snapshot.id)
        repo.branch("circle", str(made[1]))
    forge(store, [row(never, 9, made[1])])
    with open_store(store) as repo:
        for _ in range(2):
            with pytest.raises(IntegrityError, match="record in expired/ is wrong"):
                list(repo.log("circle"))
        with pytest.raises(IntegrityError, match="record in expired/ is wrong"):
            repo.expire(Keep(last=1))
        with open_store(MemoryStore(), create=True) as other:
            repo.push(other, ["circle"])  # which a history that ends nowhere does not keep busy
            assert other.branches() == {"circle": made[1]}


def test_a_forged_record_with_another_number_is_not_used(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    forge(store, [row(ids[9], 9, ids[8]), row(ids[5], 1 << 62, *ids[4:5])])
    with open_store(store) as repo:
        assert numbers(repo) == list(range(COUNT, 0, -1))
        assert repo.expire(KEEP).go == 8
        assert len(repo.verify().problems) >= 2


def test_a_damaged_record_is_named_and_hides_nothing(
    store: ObjectStore, ids: list[SnapshotId]
) -> None:
    with open_store(store) as repo:
        repo.expire(KEEP, apply=True)
    [info] = store.list(names.EXPIRED)
    flip_bit(store, info.name, info.size // 2)
    with open_store(store) as repo:
        assert numbers(repo) == list(range(COUNT, 0, -1))
        [problem] = repo.verify().problems
        assert info.name in problem.message
        assert repo.expire(KEEP, apply=True).go == 8  # records them again
        assert numbers(repo) == STAY


def test_a_damaged_policy_is_an_error_and_named(store: ObjectStore, ids: list[SnapshotId]) -> None:
    with open_store(store) as repo:
        repo.set_policy(KEEP)
    [info] = store.list(names.POLICIES)
    flip_bit(store, info.name, info.size // 2)
    with open_store(store) as repo:
        for call in (repo.policy, repo.expire, repo.maintain):
            with pytest.raises(IntegrityError, match="policies/"):
                call()
        [problem] = repo.verify().problems
        assert info.name in problem.message
        repo.set_policy(KEEP)
        assert repo.policy() == (KEEP,)


def test_a_record_of_a_newer_format_is_refused() -> None:
    store = MemoryStore()
    fill(store)
    body = seal(ObjectKind.EXPIRED, b"")[:-8]
    newer = body[:5] + bytes([99]) + body[6:]
    data = newer + checksum(newer)
    store.put(f"{names.EXPIRED}{blake3_256(data).hex()}", [data])
    with open_store(store) as repo, pytest.raises(UnsupportedError, match="upgrade"):
        numbers(repo)


def test_misnamed_objects_beside_records_are_reported() -> None:
    store = MemoryStore()
    fill(store)
    for name in ("expired/x", "policies/x"):
        store.put(name, [b""])
    with open_store(store) as repo:
        assert numbers(repo) == list(range(COUNT, 0, -1))
        assert repo.policy() == ()
        assert [p.message.split()[0] for p in repo.verify().problems] == ["expired/x", "policies/x"]
