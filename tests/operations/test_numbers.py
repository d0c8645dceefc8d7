"""Numbers of versions: 1 more than the first parent's, in every kind of commit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.content.arguments import to_sources
from casweights.errors import ErrorCode, IntegrityError
from casweights.format.manifest import EncodedSnapshot
from casweights.format.names import snapshot_name
from casweights.operations.commit import Description, commit
from casweights.stores.memory import MemoryStore
from tests.operations.transfers import create

if TYPE_CHECKING:
    from casweights import Repository, Snapshot, SnapshotId


def merge(repo: Repository, *parents: SnapshotId) -> Snapshot:
    """Commit a version with several parents to a new branch."""
    description = Description(
        parents=parents, time=datetime(2026, 8, 1, tzinfo=UTC), author="", message="", metadata={}
    )
    base = repo._db.snapshots.load(parents[0], with_locations=True)
    return commit(
        repo._db,
        to_sources({"n": 0}, (), ()),
        description,
        branch=f"merged-{parents[0]!s:.8}",
        head=None,
        parent=base,
        compression="auto",
    )


def forge(repo: Repository, version: Snapshot, number: int) -> SnapshotId:
    """Store a copy of a version with another number."""
    forged, encoded = EncodedSnapshot.of(replace(version, number=number))
    repo._db.snapshots.save(*repo._db.snapshots.encode(forged, encoded))
    return forged.id


def test_versions_of_a_branch_are_numbered_from_one(repo: Repository) -> None:
    versions = [repo.commit({"n": n}) for n in range(3)]
    fork = repo.commit({"n": 7}, branch="fork", parent=versions[0])
    new = repo.commit({"n": 8}, branch="new")
    assert [version.number for version in versions] == [1, 2, 3]
    assert (fork.number, new.number) == (2, 1)
    assert [version.number for version in repo.log()] == [3, 2, 1]
    assert repo.verify().problems == ()


def test_a_merge_follows_its_first_parent(repo: Repository) -> None:
    versions = [repo.commit({"n": n}) for n in range(3)]
    side = repo.commit({"n": 8}, branch="side")
    assert merge(repo, versions[2].id, side.id).number == 4
    assert merge(repo, side.id, versions[2].id).number == 2
    assert repo.verify().problems == ()


def test_numbers_go_on_where_the_history_was_not_copied(repo: Repository) -> None:
    versions = [repo.commit({"n": n}) for n in range(3)]
    target = MemoryStore()
    create(target)
    with casweights.open(target) as other:
        repo.push(other, history=False)
        assert other.resolve("main") == versions[2].id
        assert other.commit({"n": 3}).number == 4
        assert other.verify().problems == ()


@pytest.mark.parametrize("number", [1, 2, 4, 2**63 - 1])
def test_verify_reports_a_version_whose_number_does_not_follow_its_parent(
    repo: Repository, number: int
) -> None:
    versions = [repo.commit({"n": n}) for n in range(3)]
    forged = forge(repo, versions[2], number)
    assert repo.snapshot(forged).number == number  # a reader does not compare it
    repo.load(forged)
    [problem] = repo.verify().problems
    assert isinstance(problem, IntegrityError)
    assert problem.code is ErrorCode.CORRUPT_OBJECT
    assert str(problem) == (
        f"{snapshot_name(forged)}: its number is {number}, but that of its first parent is 2"
    )


def test_verify_reports_a_first_version_that_is_not_the_first(repo: Repository) -> None:
    forged = forge(repo, repo.commit({"n": 0}), 3)
    [problem] = repo.verify().problems
    assert str(problem) == f"{snapshot_name(forged)}: its number is 3, but it has no parents"
