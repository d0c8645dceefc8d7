"""Tests of the smallest driver, which ``docs/stores.md`` shows."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.stores import optional
from casweights.stores.base import ObjectStore
from casweights.testing import StoreTests
from tests.stores.dict_store import DictStore

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"


class TestDictStore(StoreTests):
    @pytest.fixture
    def objects(self) -> dict[str, bytes]:
        return {}

    @pytest.fixture
    def store(self, objects: dict[str, bytes]) -> DictStore:
        return DictStore(objects)

    @pytest.fixture
    def again(self, objects: dict[str, bytes]) -> Callable[[], DictStore]:
        return lambda: DictStore(objects)


def test_the_page_shows_this_driver() -> None:
    assert inspect.getsource(DictStore) in PAGE.read_text(encoding="utf-8")


def test_the_page_names_all_required_methods_and_optional_abilities() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert {name for name in ObjectStore.__abstractmethods__ if f"`{name}`" not in page} == set()
    assert [name for name in vars(optional) if name.startswith("Supports")] == [
        line.split("`")[1] for line in page.splitlines() if line.startswith("| `Supports")
    ]


def test_the_smallest_driver_has_no_optional_ability() -> None:
    kinds = [kind for name, kind in vars(optional).items() if name.startswith("Supports")]
    assert not [kind for kind in kinds if DictStore({}).ability(kind)]
    assert not DictStore({}).capabilities.exclusive_create


def test_the_smallest_driver_keeps_versions(tmp_path: Path) -> None:
    objects: dict[str, bytes] = {}
    with casweights.open(DictStore(objects), create=True) as repo:
        versions = [repo.commit({"weight": n}) for n in range(3)]
        repo.tag("first", versions[0])
    with casweights.open(DictStore(objects)) as again:
        assert [again.load(version)["weight"] for version in versions] == [0, 1, 2]
        assert again.resolve("main~2") == again.resolve("first") == versions[0].id
        assert again.verify().problems == ()
