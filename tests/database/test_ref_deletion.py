"""Branches and tags that are deleted by a move, and brought back."""

from __future__ import annotations

import itertools
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.errors import ConflictError, ErrorCode, NotFoundError
from casweights.format import names
from casweights.stores.base import Capabilities, ObjectStore
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.testing.faults import Fault, FaultyStore
from tests.copying_bucket import Bucket
from tests.lengths import moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository
    from tests.database.conftest import MakeStore

CONFIG = StoreConfig(chunk_size=64 * KiB)
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ["directory", "memory", "bucket", "git"]


class Unordered(MemoryStore):
    """A store in memory that neither creates objects exclusively nor copies them."""

    capabilities = Capabilities(clock_skew=0.0)


def weights(number: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((8,), float(number))}


class TestOneHandleAfterTheOther:
    """What a deleted branch or tag is, where everything happens in turn."""

    @pytest.fixture(params=KINDS)
    def repo(self, request: pytest.FixtureRequest, make_store: MakeStore) -> Iterator[Repository]:
        with make_store(request.param)("writer") as repo:
            yield repo

    def test_a_branch_that_is_deleted_comes_back_where_it_was(self, repo: Repository) -> None:
        first, second = repo.commit(weights(1)), repo.commit(weights(2))
        repo.tag("v1", first)
        repo.delete_branch("main")
        repo.delete_tag("v1")
        assert (repo.branches(), repo.tags()) == ({}, {})
        assert repo.deleted() == {"heads/main": second.id, "tags/v1": first.id}
        for ref in ("main", "heads/main", "v1", "tags/v1"):
            with pytest.raises(NotFoundError):
                repo.resolve(ref)
        assert repo.undelete("main") == second.id
        assert repo.undelete("tags/v1") == first.id
        assert repo.branches() == {"main": second.id}
        assert repo.tags() == {"v1": first.id}
        assert repo.deleted() == {}
        assert repo.commit(weights(3)).parents == (second.id,)
        assert repo.verify().problems == ()

    def test_a_branch_that_is_created_again_has_no_history(self, repo: Repository) -> None:
        first = repo.commit(weights(1))
        repo.delete_branch("main")
        again = repo.commit(weights(2))
        assert (again.number, again.parents) == (1, ())
        assert repo.deleted() == {}
        with pytest.raises(ConflictError, match="--as") as caught:
            repo.undelete("main")
        assert caught.value.code is ErrorCode.ALREADY_EXISTS
        assert repo.undelete("main", "old") == first.id
        assert repo.branches() == {"main": again.id, "old": first.id}
        with pytest.raises(ConflictError, match="'old' exists already"):
            repo.undelete("main", "old") if repo.resolve("main") != first.id else None

    def test_a_tag_may_name_another_version_after_its_deletion(self, repo: Repository) -> None:
        first, second = repo.commit(weights(1)), repo.commit(weights(2))
        for version_ in (first, second, first):
            repo.tag("v1", version_)
            assert repo.tags() == {"v1": version_.id}
            repo.delete_tag("v1")
            assert repo.deleted() == {"tags/v1": version_.id}
        repo.tag("v1", second)
        assert repo.undelete("v1", "v2") == first.id
        assert repo.tags() == {"v1": second.id, "v2": first.id}

    def test_names_that_were_never_deleted_cannot_be_brought_back(self, repo: Repository) -> None:
        repo.commit(weights(1))
        repo.branch("mine", "main")
        repo.delete_branch("mine")
        for ref in ("main", "nothing", "tags/mine"):
            with pytest.raises(NotFoundError) as caught:
                repo.undelete(ref)
            assert caught.value.code is ErrorCode.REF_NOT_FOUND
        with pytest.raises(NotFoundError) as caught:
            repo.undelete("mime")
        assert caught.value.__notes__ == ["did you mean mine?"]

    def test_a_branch_and_a_tag_of_one_name_are_told_apart(self, repo: Repository) -> None:
        first, second = repo.commit(weights(1)), repo.commit(weights(2))
        repo.branch("x", first)
        repo.tag("x", second)
        repo.delete_branch("x")
        repo.delete_tag("x")
        with pytest.raises(NotFoundError, match="heads/x or tags/x") as caught:
            repo.undelete("x")
        assert caught.value.code is ErrorCode.AMBIGUOUS
        assert repo.undelete("tags/x") == second.id
        assert repo.undelete("x") == first.id  # only the branch is still deleted
        assert (repo.branches()["x"], repo.tags()["x"]) == (first.id, second.id)

    def test_maintenance_leaves_one_object_of_a_deleted_name(self, repo: Repository) -> None:
        versions = [repo.commit(weights(n)).id for n in range(4)]
        repo.tag("v1", versions[0])
        repo.delete_branch("main")
        repo.delete_tag("v1")
        assert repo.maintain().may_delete
        refs = repo.database.refs
        marks = [info.name for info in refs.objects()]
        assert len(marks) == 2
        assert all(name.endswith(names.OFF_SUFFIX) for name in marks)
        assert repo.deleted() == {"heads/main": versions[-1], "tags/v1": versions[0]}
        assert repo.maintain().may_delete
        assert [info.name for info in refs.objects()] == marks
        assert repo.verify().problems == ()
        repo.undelete("main")
        repo.undelete("v1")
        assert repo.branches() == {"main": versions[-1]}
        assert repo.tags() == {"v1": versions[0]}
        assert [each.id for each in repo.log()] == versions[::-1]
        repo.maintain()
        assert repo.commit(weights(9)).parents == (versions[-1],)
        repo.delete_branch("main")
        repo.maintain()
        assert repo.commit(weights(10)).number == 1
        assert repo.displaced() == {}

    def test_a_push_brings_back_what_the_target_has_deleted(self, repo: Repository) -> None:
        first = repo.commit(weights(1))
        repo.tag("v1", first)
        with casweights.open(MemoryStore(), create=True, config=CONFIG) as other:
            repo.push(other)
            repo.delete_branch("main")
            repo.push(other)
            assert other.branches() == {"main": first.id}, "a deletion is not pushed"
            other.push(repo)
            assert repo.branches() == {"main": first.id}


def test_a_version_that_only_a_deleted_branch_names_may_be_gone() -> None:
    objects = MemoryStore()
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        repo.commit(weights(1))
        lost = repo.commit(weights(2), branch="side")
        repo.delete_branch("side")
        objects.delete(names.snapshot_name(lost.id))
    with casweights.open(objects) as repo:
        assert repo.verify().problems == ()
        with pytest.raises(NotFoundError) as caught:
            repo.undelete("side")
        assert caught.value.code is ErrorCode.SNAPSHOT_NOT_FOUND
        assert repo.branches().keys() == {"main"}


def test_a_listing_of_names_reads_nothing_of_deleted_ones() -> None:
    objects = FaultyStore(MemoryStore())
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        repo.commit(weights(1))
        counts = []
        for number in (0, 10):
            for name in range(number):
                repo.branch(f"b{name}", "main")
                repo.delete_branch(f"b{name}")
            repo.maintain()
            begin = len(objects.calls)
            assert repo.branches().keys() == {"main"}
            repo.resolve("main")
            assert len(repo.deleted()) == number
            counts.append(objects.calls[begin:])
        assert counts[0] == counts[1]


class Killed(BaseException):
    """The end of a process at a call of the store."""


def kill() -> None:
    raise Killed


CHANGES: dict[str, Callable[[Repository], object]] = {
    "delete a branch": lambda repo: repo.delete_branch("main"),
    "delete a tag": lambda repo: repo.delete_tag("v1"),
    "undelete a branch": lambda repo: repo.undelete("old"),
    "undelete a tag": lambda repo: repo.undelete("v0"),
    "undelete as": lambda repo: repo.undelete("old", "new"),
    "maintain": lambda repo: repo.maintain(),
}


@pytest.mark.parametrize("kind", ["directory", "bucket", "unordered"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_process_that_is_killed_at_any_call_leaves_the_state_before_or_after(
    kind: str, change: str, tmp_path: Path
) -> None:
    numbers = itertools.count()
    states = []
    for call in moments(5, change):
        for after in (False, True):
            objects: ObjectStore = Unordered()
            if kind == "directory":
                objects = LocalStore(tmp_path / str(next(numbers)))
            elif kind == "bucket":
                objects = Bucket()
            with prepared(objects) as before:
                pass
            faulty = FaultyStore(objects)
            with casweights.open(faulty, workers=1) as repo:
                fault = Fault(call=len(faulty.calls) + call, after=after, action=kill)
                faulty.unused.append(fault)
                with suppress(Killed):
                    CHANGES[change](repo)
            with casweights.open(objects, workers=1) as again:
                states.append(refs_of(again))
                assert again.verify().problems == ()
                if states[-1] == before and change != "maintain":
                    CHANGES[change](again)  # repeating it makes it
                    end = refs_of(again)
                else:
                    end = states[-1]
                again.maintain()
                assert refs_of(again) == end
        if faulty.unused:
            break
    assert call > 3
    assert all(state in (before, end) for state in states)
    assert (before != end) is (change != "maintain")


@contextmanager
def prepared(objects: ObjectStore) -> Iterator[dict[str, object]]:
    """Make a store with branches and tags, some deleted; yield what it has."""
    with casweights.open(objects, create=True, config=CONFIG, workers=1) as repo:
        for number in range(3):
            repo.commit(weights(number), time=WHEN)
        for name in ("old", "older"):
            repo.branch(name, "main~1")
            repo.delete_branch(name)
        repo.tag("v1", "main")
        repo.tag("v0", "main~1")
        repo.delete_tag("v0")
        yield refs_of(repo)


def refs_of(repo: Repository) -> dict[str, object]:
    return {"branches": repo.branches(), "tags": repo.tags(), "deleted": repo.deleted()}
