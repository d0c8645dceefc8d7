"""A collection without grace time is refused while others are about to write to the directory."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

import casweights
from casweights.errors import ConflictError, ErrorCode
from casweights.format import names
from casweights.operations import collect as collecting
from casweights.operations.replaced import check_replaced
from casweights.stores.local import LocalStore
from tests.histories import check_versions, weights
from tests.operations.collecting import abandon, commit_all, open_repo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository
    from tests.operations.collecting import Versions

    Write = Callable[[Repository, Path], None]


class Stopped(Exception):
    """A writer goes no further."""


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    """A directory with a branch, and with versions that nothing names."""
    objects = LocalStore(tmp_path / "store")
    with open_repo(objects, create=True) as repo:
        kept = commit_all(repo, "main")
        abandon(repo, objects)
    return kept


def clear(folder: Path) -> int:
    """Collect without grace time, in a handle of its own; return how many objects moved."""
    with open_repo(LocalStore(folder)) as repo:
        return len(repo.gc(apply=True, grace=timedelta(0), confirm=repo.url).objects)


@contextmanager
def stopped_at(place: str, folder: Path) -> Iterator[None]:
    """Let somebody collect when a writer comes to this function, and stop the writer there."""

    def meet(*_: object, **__: object) -> None:
        with pytest.raises(ConflictError, match="1 other open handle") as caught:
            clear(folder)
        assert caught.value.code is ErrorCode.BUSY
        raise Stopped

    with patch(place, meet), pytest.raises(Stopped):
        yield


def commit(repo: Repository, _: Path) -> None:
    repo.commit({"w": weights(2, seed=9)})


def tag(repo: Repository, _: Path) -> None:
    repo.tag("v1", "main")


def branch(repo: Repository, _: Path) -> None:
    repo.branch("other", "main")


def undelete(repo: Repository, _: Path) -> None:
    repo.undelete(str(next(repo.log()).id), "again")


def receive(repo: Repository, folder: Path) -> None:
    with open_repo(LocalStore(folder / "source")) as source:
        source.push(repo, ["v1"])


OPERATIONS = "casweights.operations"
FIRST_LOOKS: dict[Write, str] = {
    commit: f"{OPERATIONS}.commit.encode_files",
    tag: f"{OPERATIONS}.reliance.check_stands",
    branch: f"{OPERATIONS}.reliance.check_stands",
    undelete: f"{OPERATIONS}.undelete.bring_back_version",
    receive: f"{OPERATIONS}.transfer.Transfer._send",
}


@pytest.mark.parametrize("write", FIRST_LOOKS, ids=lambda write: write.__name__)
def test_a_writer_is_seen_before_it_looks_at_what_it_relies_on(
    tmp_path: Path,
    versions: Versions,
    write: Write,
) -> None:
    with open_repo(LocalStore(tmp_path / "source"), create=True) as source:
        source.tag("v1", source.commit({"w": weights(2, seed=8)}))
    objects = LocalStore(tmp_path / "store")
    with open_repo(objects) as repo, stopped_at(FIRST_LOOKS[write], tmp_path / "store"):
        write(repo, tmp_path)
    check_versions(objects, versions)


def test_a_publisher_is_seen_before_its_first_version(tmp_path: Path, versions: Versions) -> None:
    folder = tmp_path / "store"
    with (
        casweights.Publisher(str(folder)),
        pytest.raises(ConflictError, match="1 other open handle"),
    ):
        clear(folder)
    check_versions(LocalStore(folder), versions)


@pytest.mark.usefixtures("versions")
def test_who_only_reads_is_not_in_the_way(tmp_path: Path) -> None:
    """It may have no right to write, and loses nothing but what it reads."""
    folder = tmp_path / "store"
    with casweights.Subscriber(str(folder)) as subscriber:
        assert subscriber.head() is not None
        assert clear(folder)


@pytest.mark.usefixtures("versions")
def test_a_writer_that_comes_during_a_collection_stops_it(tmp_path: Path) -> None:
    folder, came = tmp_path / "store", list[casweights.Repository]()

    def come(*args: object) -> None:
        repo = open_repo(LocalStore(folder))
        repo.database.announce()
        came.append(repo)
        check_replaced(*args)  # type: ignore[arg-type]

    before = {info.name for info in LocalStore(folder).list(names.PACKS)}
    with (
        patch.object(collecting, "check_replaced", come),
        pytest.raises(ConflictError, match="1 other open handle"),
    ):
        clear(folder)
    assert {info.name for info in LocalStore(folder).list(names.PACKS)} == before
    came.pop().close()
    assert clear(folder)
