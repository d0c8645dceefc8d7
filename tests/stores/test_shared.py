"""Tests of directories that several users of one group write to."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.errors import UnsupportedError
from casweights.stores.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UMASKS = [0o022, 0o002, 0o077]
GROUP = stat.S_IRWXG | stat.S_ISGID


@pytest.fixture(params=UMASKS, ids=lambda umask: f"umask{umask:03o}")
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def use(root: Path, source: Path, config: StoreConfig) -> None:
    """Create every kind of object, and delete some."""
    source.mkdir()
    with casweights.open(root, create=True, config=config) as repository:
        for content in (b"a", b"b"):
            (source / "a.bin").write_bytes(content * 100_000)
            version = repository.commit(source)
        repository.tag("tag", version)
        repository.branch("other", version)
        repository.repack()


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("prepared", [False, True], ids=["by option", "by an administrator"])
def test_a_group_can_write_to_every_folder_and_read_every_object(
    tmp_path: Path, *, prepared: bool
) -> None:
    root = tmp_path / "store"
    if prepared:
        root.mkdir()
        root.chmod(0o2770)
    use(root, tmp_path / "model", StoreConfig(shared=not prepared))
    places = [root, *root.rglob("*")]
    for place in places:
        wanted = GROUP if place.is_dir() else stat.S_IRGRP
        assert place.stat().st_mode & wanted == wanted, place
    assert any(place.name.endswith(".ref") for place in places)


def test_a_store_that_is_not_shared_follows_the_umask(tmp_path: Path, umask: int) -> None:
    root = tmp_path / "store"
    use(root, tmp_path / "model", StoreConfig())
    for place in (root, *root.rglob("*")):
        assert stat.S_IMODE(place.stat().st_mode) & umask == 0, place


@pytest.mark.usefixtures("umask")
def test_drafts_that_one_user_leaves_behind_can_be_swept_by_another(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.share()
    store.put("packs/a", [b"bytes"])
    [drafts] = store.root.glob(".casweights-tmp-*")
    assert drafts.stat().st_mode & GROUP == GROUP


def test_opening_an_existing_store_does_not_share_it(tmp_path: Path) -> None:
    root = tmp_path / "store"
    casweights.open(root, create=True).close()
    before = root.stat().st_mode
    casweights.open(root, create=True, config=StoreConfig(shared=True)).close()
    assert root.stat().st_mode == before


def test_only_directories_are_shared(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="only stores in directories"):
        casweights.open("memory://", create=True, config=StoreConfig(shared=True))
