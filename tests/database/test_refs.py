"""Branches, tags, and the names that resolve to versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.errors import (
    ConflictError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights import Repository, Snapshot
    from casweights.testing import CountingStore


@pytest.fixture
def history(repo: Repository) -> list[Snapshot]:
    """Five versions of main, oldest first."""
    return [repo.commit({"n": n}, message=f"version {n}") for n in range(5)]


def test_a_commit_moves_the_branch(repo: Repository, history: list[Snapshot]) -> None:
    assert repo.branches() == {"main": history[-1].id}
    assert repo.resolve("main") == history[-1].id


def test_log_yields_a_version_and_those_before_it(
    repo: Repository, history: list[Snapshot]
) -> None:
    assert list(repo.log()) == history[::-1]
    assert list(repo.log("main~3")) == history[1::-1]
    assert list(repo.log(history[0])) == history[:1]


def test_the_log_of_a_missing_branch_is_refused(repo: Repository) -> None:
    with pytest.raises(NotFoundError) as caught:
        repo.log()
    assert caught.value.code is ErrorCode.REF_NOT_FOUND


@pytest.mark.parametrize(
    ("ref", "n"),
    [("main", 4), ("heads/main", 4), ("main~0", 4), ("main~", 3), ("main~1", 3), ("main~4", 0)],
)
def test_branches_and_steps_back_resolve(
    repo: Repository, history: list[Snapshot], ref: str, n: int
) -> None:
    assert repo.resolve(ref) == history[n].id


def test_ids_and_their_first_digits_resolve(repo: Repository, history: list[Snapshot]) -> None:
    for version in history:
        text = str(version.id)
        for ref in (version, version.id, text, text.upper(), text[:12], text[:4]):
            assert repo.resolve(ref) == version.id
    assert repo.resolve(f"{history[4].id}~2") == history[2].id
    assert repo.resolve(f"{str(history[4].id)[:8]}~") == history[3].id


@pytest.mark.parametrize(
    ("ref", "code"),
    [
        ("other", ErrorCode.REF_NOT_FOUND),
        ("heads/other", ErrorCode.REF_NOT_FOUND),
        ("tags/main", ErrorCode.REF_NOT_FOUND),
        ("main~5", ErrorCode.REF_NOT_FOUND),
        ("abc", ErrorCode.REF_NOT_FOUND),
        ("0000", ErrorCode.SNAPSHOT_NOT_FOUND),
        ("0" * 64, ErrorCode.SNAPSHOT_NOT_FOUND),
        ("0" * 65, ErrorCode.REF_NOT_FOUND),
    ],
)
def test_refs_to_missing_versions_are_not_found(
    repo: Repository, history: list[Snapshot], ref: str, code: ErrorCode
) -> None:
    with pytest.raises(NotFoundError) as caught:
        repo.resolve(ref)
    assert caught.value.code is code


@pytest.mark.parametrize("ref", ["", "main~x", "main~-1", "main~1~1", "a b", "~1", "../main"])
def test_malformed_refs_are_refused(repo: Repository, history: list[Snapshot], ref: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        repo.resolve(ref)
    assert caught.value.code is ErrorCode.BAD_NAME


def test_an_unknown_id_is_not_found(repo: Repository, history: list[Snapshot]) -> None:
    with pytest.raises(NotFoundError) as caught:
        repo.snapshot(SnapshotId(bytes(32)))
    assert caught.value.code is ErrorCode.SNAPSHOT_NOT_FOUND


def test_an_ambiguous_prefix_is_refused(repo: Repository) -> None:
    digits: dict[str, SnapshotId] = {}
    for n in range(2000):
        snapshot = repo.commit({"n": n}, branch=f"side-{n}").id
        if (prefix := str(snapshot)[:4]) in digits:
            break
        digits[prefix] = snapshot
    with pytest.raises(NotFoundError, match=f"2 snapshots begin with {prefix}") as caught:
        repo.resolve(prefix)
    assert caught.value.code is ErrorCode.AMBIGUOUS
    assert repo.resolve(str(snapshot)[:20]) == snapshot


def test_a_branch_takes_precedence_over_the_prefix_of_an_id(
    repo: Repository, history: list[Snapshot]
) -> None:
    name = str(history[0].id)[:8]
    repo.branch(name, history[3])
    assert repo.resolve(name) == history[3].id
    assert repo.resolve(str(history[0].id)[:9]) == history[0].id


def test_branch_creates_a_branch_and_moves_it_only_with_force(
    repo: Repository, history: list[Snapshot]
) -> None:
    assert repo.branch("feature/a", "main~2") == history[2].id
    assert repo.resolve("feature/a~1") == history[1].id
    with pytest.raises(ConflictError):
        repo.branch("feature/a", "main")
    assert repo.branch("feature/a", "main", force=True) == history[4].id
    assert repo.branches() == {"feature/a": history[4].id, "main": history[4].id}
    with pytest.raises(NotFoundError):
        repo.branch("other", "nothing")


def test_a_branch_below_the_name_of_another_one_is_separate(
    repo: Repository, history: list[Snapshot]
) -> None:
    repo.branch("a", "main~1")
    repo.branch("a/b", "main~2")
    repo.branch("a/b/c", "main~3")
    assert {n: repo.resolve(n) for n in ("a", "a/b", "a/b/c")} == {
        "a": history[3].id,
        "a/b": history[2].id,
        "a/b/c": history[1].id,
    }
    repo.delete_branch("a/b")
    assert sorted(repo.branches()) == ["a", "a/b/c", "main"]


def test_a_deleted_branch_can_be_created_again_and_its_versions_stay(
    repo: Repository, history: list[Snapshot]
) -> None:
    repo.branch("b", "main")
    repo.delete_branch("b")
    assert "b" not in repo.branches()
    with pytest.raises(NotFoundError):
        repo.delete_branch("b")
    repo.branch("b", "main~1")
    assert repo.resolve("b") == history[3].id
    repo.delete_branch("main")
    assert repo.resolve(history[4].id) == repo.resolve(str(history[4].id)) == history[4].id
    assert repo.commit({"n": 0}).parents == ()


def test_a_tag_resolves_and_can_be_created_twice_for_one_version(
    repo: Repository, history: list[Snapshot]
) -> None:
    assert repo.tag("v1", "main~1") == history[3].id
    assert repo.tag("v1", history[3]) == history[3].id
    assert repo.resolve("v1") == repo.resolve("tags/v1") == history[3].id
    assert repo.resolve("v1~2") == history[1].id
    assert repo.tags() == {"v1": history[3].id}
    assert "v1" not in repo.branches()


def test_a_tag_moves_only_after_it_was_deleted(repo: Repository, history: list[Snapshot]) -> None:
    repo.tag("v1", "main~1")
    with pytest.raises(ConflictError, match="tags do not move") as caught:
        repo.tag("v1", "main")
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    assert repo.tags() == {"v1": history[3].id}
    repo.delete_tag("v1")
    assert repo.tags() == {}
    repo.tag("v1", "main")
    assert repo.resolve("v1") == history[4].id


def test_missing_tags_are_not_found(repo: Repository, history: list[Snapshot]) -> None:
    for use in (repo.delete_tag, lambda name: repo.resolve(f"tags/{name}")):
        with pytest.raises(NotFoundError) as caught:
            use("v1")
        assert caught.value.code is ErrorCode.REF_NOT_FOUND
    with pytest.raises(NotFoundError):
        repo.tag("v1", "nothing")


def test_a_name_of_a_branch_and_a_tag_is_ambiguous_if_they_differ(
    repo: Repository, history: list[Snapshot]
) -> None:
    repo.tag("both", "main~1")
    repo.branch("both", "main~1")
    assert repo.resolve("both") == history[3].id
    repo.branch("both", "main", force=True)
    with pytest.raises(NotFoundError, match="say heads/both or tags/both") as caught:
        repo.resolve("both")
    assert caught.value.code is ErrorCode.AMBIGUOUS
    assert repo.resolve("heads/both") == history[4].id
    assert repo.resolve("tags/both") == history[3].id
    assert repo.resolve("tags/both~1") == history[2].id


@pytest.mark.parametrize("name", ["", "a b", "-a", ".a", "a/", "a~1", "x" * 201, "a.ref", "a.step"])
def test_invalid_names_are_refused(repo: Repository, history: list[Snapshot], name: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: repo.branch(name, "main"),
        lambda: repo.tag(name, "main"),
        lambda: repo.delete_branch(name),
        lambda: repo.delete_tag(name),
    ]
    for use in uses:
        with pytest.raises(InvalidInputError) as caught:
            use()
        assert caught.value.code is ErrorCode.BAD_NAME


def test_an_open_store_sees_changes_made_through_another_one(objects: CountingStore) -> None:
    with (
        casweights.open(objects, create=True) as one,
        casweights.open(objects) as two,
    ):
        snapshot = one.commit({"n": 1})
        assert two.resolve("main") == snapshot.id
        assert two.load("main") == {"n": 1}
        two.tag("v1", "main")
        assert one.tags() == {"v1": snapshot.id}


def test_the_error_for_a_damaged_ref_names_its_object(
    repo: Repository, objects: CountingStore
) -> None:
    repo.commit({"n": 1})
    name = "refs/heads/main/000000000001.ref"
    data = bytearray(objects.get(name))
    data[-1] ^= 1
    objects.delete(name)
    objects.put(name, [data])
    with pytest.raises(IntegrityError, match=name):
        repo.resolve("main")
