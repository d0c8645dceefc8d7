"""Tests that stores around other stores forward every method and every optional ability."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from casweights.config import MiB
from casweights.database.version_names import VersionNames
from casweights.stores import optional
from casweights.stores.base import ObjectStore
from casweights.stores.cached import CachedStore
from casweights.stores.memory import MemoryStore
from casweights.stores.optional import SupportsDirect, SupportsReadahead
from casweights.stores.readahead import ReadaheadStore
from casweights.stores.retry import RetryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing import CountingStore, StoreTests
from casweights.testing.versatile import VersatileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from casweights.stores.base import Batch
    from casweights.stores.optional import Announce
    from casweights.system.buffers import Buffer

METHODS = [
    name
    for name in vars(ObjectStore)
    if not name.startswith("_") and name not in ("capabilities", "ability")
]
ABILITIES = [kind for name, kind in vars(optional).items() if name.startswith("Supports")]
WRAPPERS: dict[str, Callable[[ObjectStore, Path], WrapperStore]] = {
    "plain": lambda inner, _: WrapperStore(inner),
    "counting": lambda inner, _: CountingStore(inner),
    "retry": lambda inner, _: RetryStore(inner),
    "cached": lambda inner, folder: CachedStore(inner, folder, MiB, "key"),
    "readahead": lambda inner, _: ReadaheadStore(inner, MiB),
    "versions": lambda inner, _: VersionNames(inner),
}
CALLS: dict[str, Callable[[ObjectStore], Any]] = {
    "url": lambda store: store.url,
    "create": lambda store: store.create(),
    "probe": lambda store: store.probe(),
    "require": lambda store: store.require("there"),
    "put": lambda store: store.put("new", [b"x"]),
    "batch": lambda store: store.batch(["new"]).put("new", [b"x"]),
    "put_all": lambda store: store.put_all([("new", [b"x"])]),
    "copy_from": lambda store: store.copy_from(elsewhere(), ["new"]),
    "size": lambda store: store.size("there"),
    "sizes": lambda store: store.sizes(["there"]),
    "present": lambda store: store.present(["there"]),
    "exists": lambda store: store.exists("there"),
    "readinto": lambda store: store.readinto("there", 0, memoryview(bytearray(3))),
    "get": lambda store: store.get("there"),
    "read": lambda store: store.read("there", 100),
    "read_end": lambda store: store.read_end("there", 100),
    "list": lambda store: list(store.list()),
    "list_names": lambda store: list(store.list_names()),
    "delete": lambda store: store.delete("there"),
    "delete_all": lambda store: store.delete_all(["there"]),
    "forget": lambda store: store.forget("there"),
}
# Methods that arrive instead: `put_all` calls `batch`, and the counting store handles each object.
INSTEAD = {
    "put_all": "batch",
    ("retry", "list_names"): "list",
    ("counting", "batch"): "put",
    ("counting", "put_all"): "put",
    ("counting", "copy_from"): "put",
    ("counting", "get"): "size",
    ("counting", "read"): "size",
    ("versions", "delete"): "delete_all",
    ("counting", "read_end"): "size",
}


def elsewhere() -> MemoryStore:
    store = MemoryStore()
    store.put("new", [b"x"])
    return store


class Able(VersatileStore):
    """A store with every ability that records its calls.

    Attributes:
        calls: Names of the called methods.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        super().__init__()
        self.put("there", [b"old"])
        self.calls.clear()

    def __getattribute__(self, name: str) -> Any:
        if name in METHODS:
            self.calls.append(name)
        return super().__getattribute__(name)

    def locator(self, name: str) -> bytes | None:
        return name.encode()

    def use_locator(self, name: str, locator: bytes) -> None:
        pass

    def ahead(self) -> AbstractContextManager[Announce]:
        return nullcontext(lambda _: None)

    def share(self) -> None:
        pass

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        return MemoryStore()

    def other_writers(self) -> int:
        return 0

    def direct(self) -> ObjectStore:
        return self

    def strays(self) -> dict[str, str]:
        return {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_method_reaches_the_inner_store(wrapper: str, method: str, tmp_path: Path) -> None:
    inner = Able()
    store = WRAPPERS[wrapper](inner, tmp_path)
    CALLS[method](store)
    assert inner.calls[0] == INSTEAD.get((wrapper, method), INSTEAD.get(method, method))


@pytest.mark.parametrize("kind", ABILITIES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_ability_of_the_inner_store_is_found(
    wrapper: str, kind: type[object], tmp_path: Path
) -> None:
    assert WRAPPERS[wrapper](Able(), tmp_path).ability(kind) is not None


@pytest.mark.parametrize("kind", ABILITIES)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_no_ability_is_claimed_that_the_inner_store_lacks(
    wrapper: str, kind: type[object], tmp_path: Path
) -> None:
    added = {("readahead", SupportsReadahead), ("cached", SupportsDirect)}
    found = WRAPPERS[wrapper](MemoryStore(), tmp_path).ability(kind)
    assert (found is not None) == ((wrapper, kind) in added)


class Batches(WrapperStore):
    """A store that records the arguments of its batches.

    Attributes:
        noted: The `assume_absent` of each batch.
    """

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.noted: list[object] = []

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        self.noted.append(assume_absent)
        return self.inner.batch(names)


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name != "counting"])
def test_arguments_of_a_batch_reach_the_inner_store(wrapper: str, tmp_path: Path) -> None:
    inner = Batches()
    with WRAPPERS[wrapper](inner, tmp_path).batch(["a", "b"], assume_absent=True) as batch:
        batch.put("a", [b"1"])
        batch.put("b", [b"2"])
    assert inner.noted == [True]
    assert batch.created == {"a", "b"}
    assert [inner.get(name) for name in "ab"] == [b"1", b"2"]


def test_a_driver_is_found_inside_its_wrappers() -> None:
    inner = MemoryStore()
    assert RetryStore(CountingStore(inner)).ability(MemoryStore) is inner
    assert RetryStore(CountingStore(inner)).ability(VersatileStore) is None


def test_calls_do_not_bypass_an_overridden_core_method() -> None:
    class Noting(WrapperStore):
        noted: Sequence[str] = ()

        def put(self, name: str, parts: Sequence[Buffer]) -> bool:
            self.noted = [*self.noted, f"put {name}"]
            return super().put(name, parts)

        def readinto(self, name: str, start: int, out: memoryview) -> None:
            self.noted = [*self.noted, f"readinto {name}"]
            super().readinto(name, start, out)

        def delete(self, name: str) -> None:
            self.noted = [*self.noted, f"delete {name}"]
            super().delete(name)

    store = Noting(MemoryStore())
    store.put_all([("a", [b"1"])])
    store.copy_from(elsewhere(), ["new"])
    assert store.get("a") == store.read("a", 1) == b"1"
    store.delete_all(["a"])
    assert store.noted == ["put a", "put new", "readinto a", "readinto a", "delete a"]


class TestCountingStore(StoreTests):
    @pytest.fixture
    def store(self) -> CountingStore:
        return CountingStore(MemoryStore())


class TestVersatileStore(StoreTests):
    @pytest.fixture
    def store(self) -> VersatileStore:
        return VersatileStore()


def test_the_counting_store_records_reads_and_created_objects() -> None:
    store = CountingStore(MemoryStore())
    store.put("packs/a", [b"some", b"thing"])
    store.put("packs/a", [b"again"])
    store.put("snapshots/b", [b""])
    store.get("packs/a", 2, 3)
    store.get("packs/a")
    assert store.writes == [("packs/a", 9), ("snapshots/b", 0)]
    assert store.reads == [("packs/a", 3), ("packs/a", 9)]
    assert (store.read_bytes("packs/"), store.read_bytes("snapshots/")) == (12, 0)
    store.reset()
    assert store.reads == store.writes == []
