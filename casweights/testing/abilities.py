"""Tests of batches, of copies between stores, and of the optional abilities of a store."""

# ruff: noqa: S101  tests are made of assert

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import pytest

from casweights.errors import (
    InvalidInputError,
    NotFoundError,
)
from casweights.stores.memory import MemoryStore
from casweights.stores.optional import (
    SupportsChanges,
    SupportsCopy,
    SupportsLocators,
    SupportsReplace,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.stores.base import ObjectStore

_Ability = TypeVar("_Ability")


def _able(store: ObjectStore, kind: type[_Ability]) -> _Ability:
    """Return the store as an object with an optional ability; skip the test if it lacks it."""
    able = store.ability(kind)
    if able is None:
        pytest.skip(f"the store does not implement {kind.__name__}")
    return able


class AbilityTests:
    """A part of `StoreTests`. Tests of abilities that the store lacks are skipped."""

    def test_copy_from_another_store_adds_only_missing_objects(self, store: ObjectStore) -> None:
        other = MemoryStore()
        for name in ("packs/a", "packs/b", "packs/c"):
            other.put(name, [name.encode()])
        store.put("packs/b", [b"ours"])
        store.copy_from(other, ["packs/a", "packs/b", "packs/c"])
        assert [store.get(f"packs/{n}") for n in "abc"] == [b"packs/a", b"ours", b"packs/c"]
        with pytest.raises(NotFoundError):
            store.copy_from(other, ["packs/nothing"])

    def test_wrong_locators_do_no_harm(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        locators = _able(store, SupportsLocators)
        store.put("a", [b"this"])
        store.put("b", [b"that one"])
        for known in (locators.locator("a"), locators.locator("b")):
            reader = again()
            # Locators come from other clients and go out of date: they are only hints.
            for locator in (known, b"", b"nonsense", bytes(1000)):
                if locator is not None:
                    _able(reader, SupportsLocators).use_locator("nothing", locator)
                    _able(reader, SupportsLocators).use_locator("a", locator)
            reader.forget("nothing")
            reader.forget("a")
            assert not reader.forget("a")
            assert reader.get("a") == b"this"
            assert not reader.exists("nothing")
        reader = again()
        if (locator := locators.locator("a")) is not None:
            _able(reader, SupportsLocators).use_locator("a", locator)
        assert reader.get("a", 1, 2) == b"hi"
        assert reader.size("a") == 4

    def test_a_batch_makes_its_objects_visible_in_order(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        store.put("b", [b"old"])
        with store.batch(["a", "b", "c"]) as batch:
            batch.put("a", [b"1", b"2"])
            batch.put("b", [b"new"])
            batch.put("c", [])
        assert batch.created == {"a", "c"}
        for reader in (store, again()):
            assert [reader.get(name) for name in "abc"] == [b"12", b"old", b""]
        assert store.put_all([("later", [b"more"])], assume_absent=True)
        assert again().get("later") == b"more"

    def test_an_error_in_a_batch_leaves_out_objects_that_were_not_put(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        batch = store.batch(["a", "b"])
        with suppress(KeyError), batch:
            batch.put("a", [b"first"])
            raise KeyError("an error of the caller")
        for reader in (store, again()):
            # A store may already have created "a": only later objects must stay invisible.
            assert {info.name for info in reader.list()} <= {"a"}
            assert not reader.exists("b")
        assert list(store.put_all([("a", [b"first"]), ("b", [b"second"])]))[1]
        assert [again().get(name) for name in "ab"] == [b"first", b"second"]

    def test_a_batch_refuses_names_that_it_did_not_begin_with(self, store: ObjectStore) -> None:
        store.put("b", [b"old"])
        with pytest.raises(InvalidInputError), store.batch(["a"]) as batch:
            batch.put("b", [b"new"])
        assert store.get("b") == b"old"

    def test_a_copy_within_the_store_does_not_depend_on_its_source(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        copying = _able(store, SupportsCopy)
        store.put("packs/a", [b"bytes"])
        assert copying.copy("packs/a", "fossils/a")
        assert not copying.copy("packs/a", "fossils/a")
        store.delete("packs/a")
        assert again().get("fossils/a") == store.get("fossils/a") == b"bytes"
        with pytest.raises(NotFoundError):
            copying.copy("packs/a", "fossils/b")
        assert not again().exists("fossils/b")

    def test_replace_succeeds_only_with_the_current_tag(self, store: ObjectStore) -> None:
        replacing = _able(store, SupportsReplace)
        assert replacing.tag("head") is None
        first = replacing.replace("head", [b"1"], None)
        assert first is not None
        assert replacing.replace("head", [b"other"], None) is None
        second = replacing.replace("head", [b"2"], first)
        assert second not in (None, first)
        assert replacing.replace("head", [b"other"], first) is None
        assert replacing.tag("head") == second
        assert store.get("head") == b"2"
        store.delete("head")
        assert replacing.tag("head") is None

    def test_changes_are_reported_once_and_in_order(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        feed, writer = _able(store, SupportsChanges), again()
        writer.put("a", [b"before"])
        names, cursor = feed.changes()  # without a cursor: only where the feed ends now
        assert list(names) == []
        writer.put("b", [b"1"])
        writer.delete("a")
        names, later = feed.changes(cursor, timeout=10)
        assert list(names) == ["b", "a"]
        assert list(feed.changes(later).names) == []
        assert list(feed.changes(cursor).names) == ["b", "a"]
