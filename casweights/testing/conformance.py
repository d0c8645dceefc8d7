"""Tests of the store contract, which every driver must pass."""

# ruff: noqa: S101  tests are made of assert

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from casweights.config import MiB
from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
)
from casweights.stores.base import ObjectInfo
from casweights.testing.abilities import AbilityTests

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.stores.base import ObjectStore

# Names that would leave a directory, or mean different objects on different systems.
BAD_NAMES = [
    "",
    "/",
    "/absolute",
    "folder/",
    "two//slashes",
    ".",
    "..",
    "../above",
    "folder/../sibling",
    "folder/./same",
    ".hidden",
    "folder/.hidden",
    "back\\slash",
    "nul\0",
    "line\nbreak",
    "trailing\n",  # `$` in a regular expression matches before it
    "white space",
    "umläut",
    "a" * 256,
    "/".join(["a" * 200] * 3),
]
GOOD_NAMES = [
    "a",
    "0",
    "casweights.json",
    "packs/" + "0f" * 32,
    "refs/heads/user@host/a+b=c_d-e.f/000000000001.ref",
    "a" * 255,
    "/".join(["a" * 170] * 3),
]
_DAY = 86_400  # seconds: a store's clock may be wrong, but its unit is not
_THREADS = 8  # enough for writers to collide


class StoreTests(AbilityTests):
    """Tests of one store driver: subclass it and override the fixture `store`.

    The fixture `store` must return an empty store for each test. If objects outlive the store
    object or are shared between processes, override the fixture `again` as well. Tests of optional
    abilities are skipped if the store lacks them.

    Example:
        >>> from casweights.testing import StoreTests
        >>> class TestMyStore(StoreTests):
        ...     @pytest.fixture
        ...     def store(self, tmp_path):
        ...         return MyStore(tmp_path)
    """

    @pytest.fixture
    def store(self) -> ObjectStore:
        """An empty store; each subclass provides its own."""
        raise NotImplementedError

    @pytest.fixture
    def again(self, store: ObjectStore) -> Callable[[], ObjectStore]:
        """A function that opens the same objects again, as another process would."""
        return lambda: store

    def test_an_object_that_was_put_can_be_read(self, store: ObjectStore) -> None:
        assert store.put("folder/name", [b"some ", bytearray(b"bytes"), memoryview(b"!")])
        assert store.get("folder/name") == b"some bytes!"
        assert store.size("folder/name") == 11
        assert store.exists("folder/name")

    def test_clients_see_each_others_objects(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        assert again().put("name", [b"theirs"])
        assert store.get("name") == b"theirs"
        assert not store.put("name", [b"ours"])
        assert again().get("name") == b"theirs"

    @pytest.mark.parametrize("data", [b"", b"x", b"long enough to be an object of its own"])
    def test_objects_are_immutable(self, store: ObjectStore, data: bytes) -> None:
        assert store.put("name", [data])
        assert not store.put("name", [data])
        assert not store.put("name", [b"other"])
        assert store.get("name") == data

    def test_an_object_may_be_empty(self, store: ObjectStore) -> None:
        assert store.put("none", [])
        assert store.put("blank", [b"", b""])
        assert store.get("none") == store.get("blank") == b""
        assert list(store.list()) == [ObjectInfo("blank", 0), ObjectInfo("none", 0)]

    def test_an_object_may_have_many_parts(self, store: ObjectStore) -> None:
        parts = [bytes([n % 256]) * (n % 7) for n in range(5000)]
        store.put("name", parts)
        assert store.get("name") == b"".join(parts)

    def test_an_object_may_be_large(self, store: ObjectStore) -> None:
        data = bytes(range(256)) * (5 * MiB // 256)
        store.put("name", [data[: 3 * MiB], data[3 * MiB :]])
        assert store.size("name") == 5 * MiB
        assert store.get("name") == data
        assert store.get("name", 3 * MiB - 1, 2) == data[3 * MiB - 1 : 3 * MiB + 1]

    def test_the_caller_may_change_parts_after_put(self, store: ObjectStore) -> None:
        part = bytearray(b"before")
        parts = [part]
        store.put("name", parts)
        part[:] = b"after!"
        assert parts == [b"after!"]
        assert store.get("name") == b"before"

    @pytest.mark.parametrize(
        ("start", "size", "expected"),
        [
            (0, 10, b"0123456789"),
            (0, 1, b"0"),
            (3, 4, b"3456"),
            (9, 1, b"9"),
            (4, 0, b""),
            (10, 0, b""),
            (3, None, b"3456789"),
            (10, None, b""),
        ],
    )
    def test_get_returns_the_requested_range(
        self, store: ObjectStore, start: int, size: int | None, expected: bytes
    ) -> None:
        store.put("name", [b"01234", b"56789"])
        assert store.get("name", start, size) == expected

    @pytest.mark.parametrize(("start", "size"), [(0, 11), (9, 2), (10, 1), (50, 1)])
    def test_a_range_beyond_the_end_is_reported_as_damage(
        self, store: ObjectStore, start: int, size: int
    ) -> None:
        store.put("name", [b"0123456789"])
        with pytest.raises(IntegrityError, match="name") as caught:
            store.get("name", start, size)
        assert caught.value.code is ErrorCode.CORRUPT_OBJECT

    def test_readinto_fills_exactly_the_given_buffer(self, store: ObjectStore) -> None:
        store.put("name", [b"0123456789"])
        out = bytearray(b"......")
        store.readinto("name", 3, memoryview(out)[2:5])
        assert out == b"..345."

    def test_reading_a_missing_object_raises_not_found(self, store: ObjectStore) -> None:
        store.put("folder/name", [b"x"])
        reads: list[Callable[[str], object]] = [
            store.size,
            store.get,
            lambda name: store.get(name, 0, 1),
            lambda name: store.readinto(name, 0, memoryview(bytearray(1))),
        ]
        # Names have no hierarchy, even in a store that keeps them as directories.
        for name in ("nothing", "folder", "folder/nothing", "folder/name/below"):
            assert not store.exists(name)
            for read in reads:
                with pytest.raises(NotFoundError) as caught:
                    read(name)
                assert caught.value.code is ErrorCode.OBJECT_NOT_FOUND

    def test_list_is_ordered_by_name(self, store: ObjectStore) -> None:
        # "-", "." and "0" sort around "/": walking directories gives another order.
        names = ["b", "a/c", "a-c", "a.c", "a/b/c", "a/b.c", "a0", "_", "B"]
        for n, name in enumerate(names):
            store.put(name, [b"x" * n])
        assert list(store.list()) == [ObjectInfo(n, names.index(n)) for n in sorted(names)]

    def test_the_creation_time_of_an_object_does_not_change(self, store: ObjectStore) -> None:
        store.put("name", [b"data"])
        (first,), (second,) = store.list(), store.list()
        assert first.created == second.created
        assert first.created == 0 or abs(time.time() - first.created / 1e6) < _DAY

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("", ["a/b", "a/bc/d", "a/c", "ab/d"]),
            ("a", ["a/b", "a/bc/d", "a/c", "ab/d"]),
            ("a/", ["a/b", "a/bc/d", "a/c"]),
            ("a/b", ["a/b", "a/bc/d"]),
            ("a/bc/", ["a/bc/d"]),
            ("a/b/", []),
            ("ab/d", ["ab/d"]),
            ("ab/d/e", []),
            ("nothing", []),
            ("nothing/at/all", []),
        ],
    )
    def test_list_returns_the_names_that_begin_with_the_prefix(
        self, store: ObjectStore, prefix: str, expected: list[str]
    ) -> None:
        for name in ("a/b", "a/c", "ab/d", "a/bc/d"):
            store.put(name, [b"x"])
        assert [info.name for info in store.list(prefix)] == expected
        assert list(store.list_names(prefix)) == expected

    def test_an_empty_store_lists_nothing(self, store: ObjectStore) -> None:
        assert list(store.list()) == []
        assert list(store.list("packs/")) == []

    def test_a_deleted_object_is_gone_and_can_be_put_again(self, store: ObjectStore) -> None:
        store.put("folder/a", [b"1"])
        store.put("folder/b", [b"2"])
        store.delete("folder/a")
        assert not store.exists("folder/a")
        assert list(store.list()) == [ObjectInfo("folder/b", 1)]
        store.delete("folder/a")
        store.delete("no/such/thing")
        assert store.put("folder/a", [b"again"])
        assert store.get("folder/a") == b"again"

    @pytest.mark.parametrize("name", GOOD_NAMES)
    def test_valid_names_are_accepted(self, store: ObjectStore, name: str) -> None:
        assert store.put(name, [b"x"])
        assert store.get(name) == b"x"
        assert list(store.list()) == [ObjectInfo(name, 1)]

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_invalid_names_are_refused(self, store: ObjectStore, name: str) -> None:
        uses: list[Callable[[str], object]] = [
            lambda name: store.put(name, [b"x"]),
            store.size,
            store.get,
            store.delete,
            lambda name: store.readinto(name, 0, memoryview(bytearray(1))),
        ]
        for use in uses:
            with pytest.raises(InvalidInputError) as caught:
                use(name)
            assert caught.value.code is ErrorCode.BAD_NAME
        assert list(store.list()) == []

    @pytest.mark.parametrize("prefix", ["../", "/", "a/../../", "/tmp/"])  # noqa: S108
    def test_a_prefix_does_not_lead_out_of_the_store(self, store: ObjectStore, prefix: str) -> None:
        store.put("a/b", [b"x"])
        with suppress(InvalidInputError):
            assert list(store.list(prefix)) == []

    def test_concurrent_writers_lose_no_object(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        def write(n: int) -> None:
            writer = again()
            for m in range(10):
                assert writer.put(f"{n % 3}/{n}-{m}", [b"%d-%d" % (n, m)])

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(write, range(_THREADS)))
        names = [f"{n % 3}/{n}-{m}" for n in range(_THREADS) for m in range(10)]
        assert [info.name for info in store.list()] == sorted(names)
        assert all(store.get(name) == name[2:].encode() for name in names)

    def test_one_of_many_writers_creates_an_object(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        if not store.capabilities.exclusive_create:
            pytest.skip("the store does not promise exclusive creation")
        for round_ in range(10):  # a store that checks and then writes may pass a single round
            start = threading.Barrier(_THREADS)

            def write(
                n: int, name: str = f"race/{round_}", start: threading.Barrier = start
            ) -> bool:
                writer = again()
                start.wait()
                return writer.put(name, [b"%d" % n * 1000])

            with ThreadPoolExecutor(_THREADS) as pool:
                created = list(pool.map(write, range(_THREADS)))
            assert sum(created) == 1
            assert store.get(f"race/{round_}") == b"%d" % created.index(True) * 1000

    def test_readers_never_see_a_partial_object(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        size, count = 256 * 1024, 20
        done = threading.Event()

        def watch() -> None:
            reader = again()
            while not done.is_set():
                for info in reader.list():
                    assert info.size == size
                    assert reader.get(info.name) == info.name[-1:].encode() * size

        with ThreadPoolExecutor(2) as pool:
            watchers = [pool.submit(watch) for _ in range(2)]
            try:
                for n in range(count):
                    store.put(f"object-{n}", [b"%d" % (n % 10) * size])
            finally:
                done.set()
            for watcher in watchers:
                watcher.result()
        assert len(list(store.list())) == count

    def test_put_all_and_delete_all_handle_several_objects(
        self, store: ObjectStore, again: Callable[[], ObjectStore]
    ) -> None:
        store.put("b", [b"old"])
        objects = [("a", [b"1", b"2"]), ("b", [b"new"]), ("folder/c", [b""]), ("d", [])]
        assert list(store.put_all(objects)) == [True, False, True, True]
        assert list(store.put_all(objects)) == [False] * 4
        assert list(store.put_all([])) == []
        for reader in (store, again()):
            assert [reader.get(name) for name in ("a", "b", "folder/c", "d")] == [
                b"12",
                b"old",
                b"",
                b"",
            ]
        store.delete_all(["a", "nothing", "folder/c"])
        store.delete_all([])
        assert [info.name for info in again().list()] == ["b", "d"]

    def test_put_all_and_delete_all_refuse_invalid_names(self, store: ObjectStore) -> None:
        with pytest.raises(InvalidInputError):
            store.put_all([("../above", [b"x"])])
        with pytest.raises(InvalidInputError):
            store.delete_all(["../above"])

    def test_read_refuses_an_object_above_the_limit(self, store: ObjectStore) -> None:
        store.put("name", [b"0123456789"])
        store.put("blank", [])
        assert store.read("name", 10) == store.read("name", 1000) == b"0123456789"
        assert store.read("blank", 0) == b""
        with pytest.raises(IntegrityError, match="name is damaged") as caught:
            store.read("name", 9)
        assert caught.value.code is ErrorCode.CORRUPT_OBJECT
        with pytest.raises(NotFoundError):
            store.read("nothing", 10)

    @pytest.mark.parametrize("most", [1, 4, 9, 10, 11, 1000])
    def test_read_end_returns_the_last_bytes_and_the_size(
        self, store: ObjectStore, again: Callable[[], ObjectStore], most: int
    ) -> None:
        store.put("name", [b"0123456789"])
        store.put("blank", [])
        for client in (store, again(), again()):
            assert client.read_end("name", most) == (b"0123456789"[max(0, 10 - most) :], 10)
            assert client.read_end("blank", most) == (b"", 0)
            with pytest.raises(NotFoundError):
                client.read_end("nothing", most)

    def test_a_store_has_a_url(self, store: ObjectStore) -> None:
        assert store.url
