"""Whatever only asks about a store writes nothing: a token that can only read will do."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from casweights.config import Keep
from casweights.errors import ErrorCode, StoreError, UnsupportedError
from casweights.operations import collections
from casweights.stores.wrapper import WrapperStore
from tests.ages import age
from tests.operations.collecting import KINDS, LONG, abandon, commit_all, make_objects, open_repo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any, NoReturn

    from casweights import Repository
    from casweights.stores.base import ObjectStore
    from casweights.system.buffers import Buffer

    Asks = Callable[[Repository, Path], Any]


class ReadOnly(WrapperStore):
    """A store whose token can only read."""

    def put(self, name: str, parts: Sequence[Buffer]) -> NoReturn:
        raise StoreError(ErrorCode.NO_PERMISSION, f"may not write {name}")

    def delete(self, name: str) -> NoReturn:
        raise StoreError(ErrorCode.NO_PERMISSION, f"may not delete {name}")


QUESTIONS: dict[str, Asks] = {
    "load": lambda repo, _: repo.load("main"),
    "checkout": lambda repo, out: repo.checkout("main", out / "copy"),
    "tensor": lambda repo, _: repo.tensor("main", "w")[:8],
    "log": lambda repo, _: list(repo.log()),
    "graph": lambda repo, _: list(repo.graph()),
    "lineage": lambda repo, _: repo.lineage("main"),
    "diff": lambda repo, _: repo.diff("main~1", "main"),
    "similar": lambda repo, _: repo.similar("main"),
    "names": lambda repo, _: (repo.branches(), repo.tags(), repo.deleted(), repo.displaced()),
    "info": lambda repo, _: repo.info(),
    "stats": lambda repo, _: repo.stats(),
    "space": lambda repo, _: repo.space(),
    "verify": lambda repo, _: repo.verify(),
    "gc": lambda repo, _: repo.gc(),
    "expire": lambda repo, _: repo.expire(Keep(last=1)),
    "repair": lambda repo, out: repo.repair([out]),
}


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A store of each kind, with versions that a collection would set aside."""
    made = make_objects(request.param, tmp_path)
    with open_repo(made, create=True) as repo:
        commit_all(repo, "main")
        abandon(repo, made)
    return made


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_needs_no_right_to_write(
    objects: ObjectStore, question: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with open_repo(ReadOnly(objects)) as repo:
        QUESTIONS[question](repo, tmp_path / "out")


def test_a_collection_that_only_says_what_it_would_do_says_what_one_does(
    objects: ObjectStore,
) -> None:
    with open_repo(ReadOnly(objects)) as reader, open_repo(objects) as repo:
        planned = reader.gc()
        assert planned.objects
        assert not planned.applied
        assert repo.gc(apply=True).objects == planned.objects


def test_a_question_refuses_a_store_whose_times_are_in_the_future(objects: ObjectStore) -> None:
    age(objects, -LONG - timedelta(hours=2))
    with open_repo(ReadOnly(objects)) as repo:
        for ask in (repo.gc, repo.space):
            with pytest.raises(UnsupportedError, match="behind that of") as caught:
                ask()
            assert caught.value.code is ErrorCode.CLOCKS_DIFFER


def test_a_question_takes_old_objects_for_no_wrong_clock(objects: ObjectStore) -> None:
    later = collections.machine_time() + timedelta(days=300).total_seconds()
    with (
        open_repo(ReadOnly(objects)) as repo,
        patch.object(collections, "machine_time", return_value=later),
    ):
        assert repo.gc().objects
