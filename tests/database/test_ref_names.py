"""New branches and tags must differ in more than case; existing ones that do not can be used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights import ErrorCode, InvalidInputError
from casweights.format import names
from casweights.stores.base import Capabilities
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a").write_bytes(b"one")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["Main", "MAIN/x", "con", "v1."])
@pytest.mark.parametrize("exclusive", [True, False])
def test_creating_a_branch_or_tag_with_an_unportable_name_is_refused(
    model: Path, name: str, *, exclusive: bool
) -> None:
    inner = MemoryStore()
    inner.capabilities = Capabilities(exclusive_create=exclusive)
    with casweights.open(inner, create=True) as store:
        first = store.commit(model)
        store.tag("main", first)
        objects = {info.name for info in inner.list()}
        (model / "a").write_bytes(b"two")
        ways: list[Any] = [
            lambda: store.commit(model, branch=name),
            lambda: store.branch(name, first),
            lambda: store.tag(name, first),
        ]
        for way in ways:
            with pytest.raises(InvalidInputError) as caught:
                way()
            assert caught.value.code is ErrorCode.BAD_NAME
            assert repr(name) in caught.value.message
        assert {info.name for info in inner.list()} == objects
        store.branch("other", first)
        store.tag("other", first)


def write_both(store: casweights.Repository, inner: MemoryStore, model: Path) -> None:
    """Create the branches ``main`` and ``Main`` in a store, as other clients may have done."""
    store.commit(model)
    [move] = inner.list(names.HEADS)
    inner.put(move.name.replace("main", "Main"), [inner.read(move.name, 1000)])


def test_existing_branches_that_differ_in_case_can_be_read_moved_and_deleted(model: Path) -> None:
    inner = MemoryStore()
    with casweights.open(inner, create=True) as store:
        write_both(store, inner, model)
        assert store.branches().keys() == {"main", "Main"}
        (model / "a").write_bytes(b"two")
        moved = store.commit(model, branch="Main")
        assert store.resolve("Main") == moved.id != store.resolve("main")
        store.delete_branch("Main")
        assert store.branches().keys() == {"main"}


def test_pushing_two_branches_that_differ_in_case_creates_only_one(model: Path) -> None:
    inner = MemoryStore()
    with (
        casweights.open(inner, create=True) as source,
        casweights.open(MemoryStore(), create=True) as target,
    ):
        write_both(source, inner, model)
        with pytest.raises(InvalidInputError, match="cannot tell it from"):
            source.push(target)
        assert target.branches().keys() == {"Main"}
        source.branch("new", "heads/main")
        with pytest.raises(InvalidInputError, match="cannot tell it from"):
            source.push(target)
        assert target.branches().keys() == {"Main", "new"}


def test_listing_a_folder_in_another_case_shows_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that ignores case opens ``Main`` where its listing shows ``main``."""
    root = tmp_path / "store"
    with casweights.open(root, create=True) as store:
        store.commit(model)
    os.symlink("main", root / "refs/heads/Main")
    assert list(LocalStore(root).list("refs/heads/Main/"))
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda at: [n for n in real(at) if n != "Main"])
    assert not list(LocalStore(root).list("refs/heads/Main/"))
    assert list(LocalStore(root).list("refs/heads/main/"))


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_a_name_that_resembles_a_deleted_one_is_refused_with_the_reason(
    model: Path, kind: str
) -> None:
    """A disk that ignores case would put the moves of both into one folder."""
    with casweights.open(MemoryStore(), create=True) as store:
        store.commit(model)
        make = getattr(store, kind)
        make("Try/one", "main")
        with pytest.raises(InvalidInputError) as caught:
            make("try/two", "main")
        assert not hasattr(caught.value, "__notes__")
        getattr(store, f"delete_{kind}")("Try/one")
        store.maintain()
        for name in ("try", "try/one", "Try/ONE"):
            with pytest.raises(InvalidInputError, match="existing 'Try/one'") as caught:
                make(name, "main")
            assert "`casweights undelete Try/one` brings it back" in caught.value.__notes__[0]
        make("Try/one", "main")
