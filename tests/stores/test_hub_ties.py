"""Tests that refs are only read from and written to a repository that is tied to the store."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.errors import ErrorCode, IntegrityError, InvalidInputError
from casweights.format import names
from casweights.format.store_file import encode_store_file
from casweights.stores.hub.git import GitRefStore
from casweights.stores.hub.store import HubStore
from casweights.testing.hub import LocalHub

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = count()


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def refs() -> str:
    """Name of a repository that the victim may write to."""
    return f"datasets/victim/refs{next(_numbers)}"


def bucket(hub: LocalHub, name: str) -> HubStore:
    return HubStore(f"me/{name}", endpoint=hub.url)


def forge(hub: LocalHub, name: str, store_id: str, refs: str) -> HubStore:
    """Create a bucket whose ``casweights.json`` an attacker wrote."""
    store = bucket(hub, name)
    store.create()
    store.delete(names.CONFIG)
    store.put(names.CONFIG, [encode_store_file(StoreConfig(refs=refs), store_id)])
    return store


def files(hub: LocalHub, refs: str) -> list[str]:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url)
    return api.list_repo_files(refs.removeprefix("datasets/"), repo_type="dataset")


def check_refused(store: HubStore) -> None:
    """Check that every call that needs the refs raises."""
    with casweights.open(store) as repo:
        for work in (
            lambda: repo.commit({"n": 1}),
            lambda: repo.branches(),
            lambda: list(repo.log()),
            lambda: repo.tag("v1", "0" * 64),
            lambda: repo.delete_branch("main"),
        ):
            with pytest.raises((IntegrityError, LookupError)) as caught:
                work()
            if isinstance(caught.value, IntegrityError):
                assert caught.value.code is ErrorCode.FOREIGN_REFS
        with pytest.raises(IntegrityError, match="does not name this store"):
            repo.commit({"n": 2})


def test_a_repository_without_a_tie_is_refused(hub: LocalHub, refs: str) -> None:
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url).create_repo(refs.removeprefix("datasets/"), repo_type="dataset")
    before = files(hub, refs)
    check_refused(forge(hub, f"forged{next(_numbers)}", "ab" * 16, refs))
    assert files(hub, refs) == before


@pytest.mark.parametrize("copies_id", [True, False])
def test_a_repository_tied_to_another_store_is_refused(
    hub: LocalHub, refs: str, copies_id: bool
) -> None:
    own = bucket(hub, f"own{next(_numbers)}")
    with casweights.open(own, create=True, config=StoreConfig(refs=refs)) as repo:
        first = repo.commit({"n": 0})
        store_id = repo.info().store_id if copies_id else "cd" * 16
        before = files(hub, refs)
        check_refused(forge(hub, f"forged{next(_numbers)}", store_id, refs))
        assert files(hub, refs) == before
        assert repo.branches() == {"main": first.id}


def test_two_stores_keep_their_refs_in_one_repository(hub: LocalHub, refs: str) -> None:
    config, heads = StoreConfig(refs=refs), {}
    for name in ("one", "two"):
        with casweights.open(bucket(hub, name), create=True, config=config) as repo:
            heads[name] = repo.commit({"name": name}).id
            assert repo.info().refs == f"hf://{refs}"
    for name, head in heads.items():
        with casweights.open(bucket(hub, name)) as repo:
            assert repo.branches() == {"main": head}


def test_creating_a_store_with_refs_ties_the_repository_to_a_renamed_bucket(
    hub: LocalHub, refs: str
) -> None:
    """Here, the renamed bucket is a new one with a copy of ``casweights.json``."""
    old, new = bucket(hub, f"old{next(_numbers)}"), f"new{next(_numbers)}"
    with casweights.open(old, create=True, config=StoreConfig(refs=refs)) as repo:
        head, store_id = repo.commit({"n": 0}), repo.info().store_id
    renamed = forge(hub, new, store_id, refs)
    check_refused(renamed)
    with casweights.open(renamed, create=True, config=StoreConfig(refs=refs)) as repo:
        assert repo.branches() == {"main": head.id}
    check_refused(bucket(hub, old.api.bucket.removeprefix("me/")))


def test_opening_an_existing_store_ties_no_repository(hub: LocalHub, refs: str) -> None:
    store = bucket(hub, f"plain{next(_numbers)}")
    for config in (StoreConfig(), StoreConfig(refs=refs)):
        with casweights.open(store, create=True, config=config) as repo:
            assert repo.info().refs == repo.url


@pytest.mark.parametrize(
    "where",
    [
        "datasets/../x",
        "datasets/me/..",
        "datasets/me/a..b",
        "datasets/me/x?y=",
        "datasets/me/x#",
        "datasets/me%2f/x",
        "datasets/me/x/y",
        "datasets/@evil.example/x",
        "buckets/me/x",
        "spaces/me/x",
        "https://evil.example/datasets/me/x",
        "datasets//x",
        "",
    ],
)
def test_invalid_repository_names_are_refused(hub: LocalHub, where: str) -> None:
    with pytest.raises(InvalidInputError, match="no repository for refs"):
        GitRefStore(where, "hf://buckets/me/x", "ab" * 16, endpoint=hub.url)


@pytest.mark.parametrize("store_id", ["../" * 10 + "ab", "AB" * 16, "ab" * 15, "ab" * 17, ""])
def test_invalid_store_ids_are_refused(hub: LocalHub, refs: str, store_id: str) -> None:
    with pytest.raises(IntegrityError):
        casweights.open(forge(hub, f"forged{next(_numbers)}", store_id, refs))
