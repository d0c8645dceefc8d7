"""What frees space needs the right to delete, and says so before it writes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.database import reflog
from casweights.database.moves import encode_move
from casweights.errors import ErrorCode, StoreError
from casweights.format import names
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.add_only import AddOnly
from tests.ages import age
from tests.copying_bucket import Bucket
from tests.database.test_add_only import weights
from tests.histories import check_versions
from tests.large_versions import packs_apart
from tests.operations.collecting import (
    CONFIG,
    LONG,
    InPlace,
    abandon,
    collect,
    commit_all,
    open_repo,
)
from tests.operations.damage import copy_of, flip

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights import Repository
    from casweights.stores.base import ObjectStore
    from tests.database.conftest import MakeStore

KINDS = ["directory", "memory", "bucket", "hub", "git"]
VERBS: dict[str, Callable[[Repository], object]] = {
    "repack": lambda repo: repo.repack(),
    "gc": lambda repo: repo.gc(apply=True),
}


def everything(repo: Repository) -> set[str]:
    return {info.name for info in repo.database.objects.list()}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_verb_that_frees_space_is_refused_before_it_writes(
    kind: str, verb: str, make_store: MakeStore
) -> None:
    reopen = make_store(kind)
    with reopen("adder") as repo:
        for number in range(3):
            repo.commit(weights(number))
        before = everything(repo)
        with pytest.raises(StoreError, match=r"let you delete objects.*nothing was") as caught:
            VERBS[verb](repo)
        assert caught.value.code is ErrorCode.NO_PERMISSION
        assert everything(repo) == before
    with reopen("writer") as repo:
        VERBS[verb](repo)
        assert repo.verify().problems == ()


@pytest.mark.parametrize("kind", ["bucket", "hub"])
def test_a_displaced_version_that_cannot_be_dropped_can_be_named(
    kind: str, make_store: MakeStore
) -> None:
    with make_store(kind)("adder") as repo:
        first = repo.commit(weights(1)).id
        head = repo.commit(weights(2)).id
        other = repo.commit(weights(3), branch="other", parent=first).id
        late = names.move_name(names.HEADS, "main", 2, other, first, "f" * names.WRITER_DIGITS)
        repo.database.objects.put(late, [encode_move(other)])
        repo.delete_branch("other")
        off = ({head, other} - {repo.branches()["main"]}).pop()
        assert repo.displaced() == {"main": (off,)}
        with pytest.raises(StoreError, match="make a branch at the version") as caught:
            repo.drop_displaced("main", off)
        assert caught.value.code is ErrorCode.NO_PERMISSION
        assert repo.displaced() == {"main": (off,)}
        repo.branch("kept", off)
        assert repo.displaced() == {}


@pytest.fixture(params=["memory", "bucket"])
def objects(request: pytest.FixtureRequest) -> MemoryStore:
    return Bucket() if request.param == "bucket" else MemoryStore()


@pytest.mark.parametrize("one", [False, True])
def test_what_lies_aside_comes_back_without_a_deletion(objects: MemoryStore, one: bool) -> None:
    with open_repo(objects, create=True) as repo:
        kept = commit_all(repo, "main", 1)
        lost = abandon(repo, objects)
        digits = collect(repo)
    with open_repo(AddOnly(objects)) as adder:
        if one:
            adder.undelete(list(lost)[-1], "found")
        else:
            adder.undelete_collection(digits)
            adder.branch("found", list(lost)[-1])
    check_versions(InPlace(objects), kept | lost)
    with open_repo(objects) as repo:
        for _ in range(2):
            age(objects, LONG)
            repo.gc(apply=True)
    assert not list(objects.list(names.ASIDE))
    check_versions(objects, kept | lost)


@pytest.mark.parametrize("whole_pack", [False, True])
def test_a_repair_stores_what_it_rebuilds_next_to_what_is_damaged(
    objects: MemoryStore, whole_pack: bool
) -> None:
    with open_repo(objects, create=True) as repo, packs_apart():
        versions = commit_all(repo, "main", 3)
    backup = copy_of(objects)
    pack = next(objects.list(names.PACKS))
    flip(objects, pack.name, -3 if whole_pack else pack.size // 2)
    with open_repo(AddOnly(objects)) as adder:
        before = everything(adder)
        done = adder.repair([backup], apply=True)
        assert not done.may_delete
        assert (done.lost, done.replaced) == ((), 0)
        assert sum(done.rebuilt.values()) == done.missing > 0
        assert everything(adder) >= before
    with open_repo(objects) as repo:
        for version, state in versions.items():
            assert_same_state(repo.load(version), state)
        done = repo.repair(apply=True)
        assert done.may_delete
        assert done.replaced == 1
    check_versions(objects, versions)


def test_damaged_segments_stay_where_they_cannot_be_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reflog, "RECENT_MOVES", 1)
    monkeypatch.setattr("casweights.operations.maintain._RECENT_PACKS", 0)
    objects: ObjectStore = MemoryStore()
    config = StoreConfig(chunk_size=CONFIG.chunk_size)
    with casweights.open(objects, create=True, config=config, workers=1) as repo:
        versions = commit_all(repo, "main", 12)
        assert repo.maintain().segments
    [segment] = objects.list(names.SEGMENTS)
    flip(objects, segment.name, -3)
    with open_repo(AddOnly(objects)) as adder:
        adder.maintain()
        for version, state in versions.items():
            assert_same_state(adder.load(version), state)
    assert segment.name in {info.name for info in objects.list(names.SEGMENTS)}
    with open_repo(objects) as repo:
        repo.maintain()
    check_versions(objects, versions)
