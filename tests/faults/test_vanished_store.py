"""A store vanishes while it is open: no write recreates it, or goes to whatever replaced it."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import CasweightsError, ErrorCode, NotFoundError, Publisher
from casweights.config import KiB, StoreConfig
from casweights.stores.hub.api import HubApi
from casweights.stores.hub.store import HubStore
from casweights.stores.local import LocalStore
from casweights.system.staging import PREFIX
from casweights.testing.faults import Fault, FaultyStore
from casweights.testing.hub import LocalHub
from tests.histories import weights
from tests.large_versions import packs_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository
    from tests.histories import State

    Action = Callable[[Path], object]

CONFIG = StoreConfig(chunk_size=64 * KiB)


def state(seed: int) -> State:
    return {"w": weights(2, seed)}


def create(place: Path) -> Repository:
    return casweights.open(place, create=True, config=CONFIG, workers=2)


def remove(place: Path) -> None:
    shutil.rmtree(place)


def leave_an_empty_mount_point(place: Path) -> None:
    shutil.rmtree(place)
    place.mkdir()


def empty(place: Path) -> None:
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def put_another_store_there(place: Path) -> None:
    shutil.rmtree(place)
    create(place).close()


def put_another_store_into_it(place: Path) -> None:
    empty(place)
    create(place).close()


def put_a_file_there(place: Path) -> None:
    shutil.rmtree(place)
    place.write_bytes(b"in the way")


def put_a_copy_there(place: Path) -> None:
    shutil.copytree(place, place.with_name("copy"))
    shutil.rmtree(place)
    place.with_name("copy").rename(place)


def rename(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))


def remove_part(name: str, place: Path) -> None:
    path = place / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()


WAYS: dict[str, Action] = {
    "removed": remove,
    "unmounted": leave_an_empty_mount_point,
    "emptied": empty,
    "another store": put_another_store_there,
    "another store in the same folder": put_another_store_into_it,
    "a file": put_a_file_there,
    "a copy": put_a_copy_there,
    "renamed": rename,
    **{
        f"no {name}": partial(remove_part, name)
        for name in ("casweights.json", "packs", "snapshots", "refs")
    },
}


def publish(repo: Repository, branch: str) -> None:
    with Publisher(repo, branch) as publisher:
        for seed in (2, 3):
            publisher.publish(state(seed))


def push_into(repo: Repository) -> None:
    with casweights.open("memory://", create=True, config=CONFIG) as other:
        other.commit(state(7), branch="theirs")
        other.push(repo)


WRITES: dict[str, Callable[[Repository], object]] = {
    "commit to a new branch": lambda repo: repo.commit(state(2), branch="new"),
    "commit": lambda repo: repo.commit(state(2)),
    "commit an existing state": lambda repo: repo.commit(state(1), branch="again", parent="main"),
    "publish to a new branch": partial(publish, branch="new"),
    "publish": partial(publish, branch="main"),
    "push into it": push_into,
    "tag": lambda repo: repo.tag("new", "main"),
    "branch": lambda repo: repo.branch("new", "main"),
    "delete a branch": lambda repo: repo.delete_branch("other"),
    "delete a tag": lambda repo: repo.delete_tag("old"),
    "repack": lambda repo: repo.repack(compression="small"),
}


def look(place: Path) -> dict[str, bytes] | None:
    """Return the files of a folder without drafts; None if the folder does not exist."""
    if not place.is_dir():
        return None
    files = (path for path in place.rglob("*") if PREFIX not in str(path))
    return {str(path.relative_to(place)): _bytes(path) for path in files}


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b"folder"


def write_history(repo: Repository) -> None:
    """Write a few objects of each kind."""
    with packs_apart():
        for seed in (0, 1):
            repo.commit(state(seed))
    repo.branch("other", "main")
    repo.tag("old", "main")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("template") / "store"
    with create(place) as repo:
        write_history(repo)
    return place


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    """A store with some history."""
    return shutil.copytree(template, tmp_path / "store")


def open_and_look(store: Path | LocalStore | FaultyStore) -> Repository:
    repo = casweights.open(store, workers=2)
    assert len([*repo.log()]) == 2
    repo.load("main")
    return repo


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("way", WAYS)
def test_no_write_changes_whatever_replaced_a_store(place: Path, way: str, write: str) -> None:
    with open_and_look(place) as repo:
        WAYS[way](place)
        there = look(place)
        with pytest.raises(NotFoundError, match="has disappeared since") as caught:
            WRITES[write](repo)
        assert caught.value.code is ErrorCode.STORE_NOT_FOUND
    assert look(place) == there


@pytest.mark.parametrize("way", ["removed", "unmounted", "another store", "no refs"])
def test_a_vanished_store_does_not_look_empty(place: Path, way: str) -> None:
    reads: list[Callable[[Repository], object]] = [
        lambda repo: repo.branches(),
        lambda repo: repo.tags(),
        lambda repo: repo.resolve("main"),
        lambda repo: repo.verify(),
        lambda repo: repo.stats(),
    ]
    with open_and_look(place) as repo:
        WAYS[way](place)
        for read in reads:
            with pytest.raises(NotFoundError, match="has disappeared since"):
                read(repo)


@pytest.mark.parametrize("way", ["unmounted", "another store", "no packs"])
@pytest.mark.parametrize("write", ["commit", "publish", "repack", "push into it"])
def test_a_store_that_vanishes_during_a_command_is_not_recreated(
    place: Path, tmp_path: Path, way: str, write: str
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(place, kept)
    codes = set()
    for number in count(1):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(kept, place)
        seen: list[dict[str, bytes] | None] = []

        def vanish(seen: list[dict[str, bytes] | None] = seen) -> None:
            WAYS[way](place)
            seen.append(look(place))

        store = FaultyStore(LocalStore(place))
        with open_and_look(store) as repo:
            store.unused = [Fault(method="put", call=number, action=vanish)]
            try:
                WRITES[write](repo)
            except NotFoundError as error:
                codes.add(error.code)
            else:
                assert store.unused, "the command reported success"
                break
        assert seen == [look(place)]
    assert codes == {ErrorCode.STORE_NOT_FOUND}


@pytest.mark.parametrize("write", WRITES)
def test_drafts_and_empty_folders_that_others_delete_are_recreated(place: Path, write: str) -> None:
    with open_and_look(place) as repo:
        repo.commit(state(5), branch="first")
        for path in [*place.glob(f"{PREFIX}*"), place / "refs/heads/empty"]:
            shutil.rmtree(path, ignore_errors=True)
        WRITES[write](repo)
    with casweights.open(place, workers=2) as repo:
        assert repo.verify().problems == ()


def test_a_draft_that_is_deleted_while_it_is_written_is_written_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reap(descriptor: int, parts: object, left: list[int] = [1, 1]) -> None:  # noqa: B006
        write(descriptor, parts)  # type: ignore[arg-type]
        if left:
            left.pop()
            for path in place.glob(f"{PREFIX}*"):
                shutil.rmtree(path)

    write = casweights.system.files.write_fully
    with open_and_look(place) as repo:
        monkeypatch.setattr("casweights.stores.local.write_fully", reap)
        version = repo.commit(state(2))
    with casweights.open(place, workers=2) as repo:
        assert repo.resolve("main") == version.id
        assert repo.verify().problems == ()


def test_a_rewritten_store_file_with_the_same_content_is_accepted(place: Path) -> None:
    with open_and_look(place) as repo:
        marker = place / "casweights.json"
        content = marker.read_bytes()
        marker.unlink()
        marker.write_bytes(content)
        repo.commit(state(2))
        repo.commit(state(3))


def test_only_create_makes_the_folder_of_a_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "a" / "store")
    with pytest.raises(NotFoundError, match="no casweights store") as caught:
        store.put("name", [b"x"])
    assert caught.value.code is ErrorCode.STORE_NOT_FOUND
    assert not (tmp_path / "a").exists()
    store.create()
    assert store.put("name", [b"x"])


BUCKET = "me/weights"


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


def delete_bucket(hub: LocalHub, store: HubStore) -> None:
    HubApi(BUCKET, hub.url).request("DELETE", f"{hub.url}/api/buckets/{BUCKET}")


def empty_prefix(hub: LocalHub, store: HubStore) -> None:
    store.delete_all([info.name for info in store.list()])


def delete_and_make_bucket(hub: LocalHub, store: HubStore) -> None:
    delete_bucket(hub, store)
    store.create()


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("vanish", [delete_bucket, empty_prefix, delete_and_make_bucket])
def test_no_write_recreates_a_store_in_a_bucket(
    hub: LocalHub, vanish: Callable[[LocalHub, HubStore], None], write: str
) -> None:
    hub.create_bucket(BUCKET)
    other = HubStore(BUCKET, "store", endpoint=hub.url)
    empty_prefix(hub, other)
    with casweights.open(other, create=True, config=CONFIG, workers=2) as repo:
        write_history(repo)
    with casweights.open(HubStore(BUCKET, "store", endpoint=hub.url), workers=2) as repo:
        repo.load("main")
        vanish(hub, other)
        with pytest.raises(CasweightsError):
            WRITES[write](repo)
        if vanish is delete_bucket:
            with pytest.raises(NotFoundError):
                list(other.list())
        else:
            assert not [info for info in other.list() if info.name.startswith("refs")]
