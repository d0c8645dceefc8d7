"""Tests of a Hub that frees bytes without a path: reads return the right bytes or a named error."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.config import StoreConfig
from casweights.errors import CasweightsError, NotFoundError, StoreError
from casweights.stores.hub.store import HubStore
from casweights.stores.retry import RetryStore
from casweights.testing.hub import Conditions, LocalHub
from casweights.testing.hub.cas_routes import CasRoutes
from casweights.testing.states import assert_same_state
from tests import histories
from tests.histories import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.stores.base import ObjectStore
    from casweights.testing.hub.messages import Answer, Request

AT_ONCE = Conditions(free_after=0)
CONFIG = StoreConfig(chunk_size=CHUNK)
NAME = "packs/" + "ab" * 16
_numbers = count()


def content() -> bytes:
    """Return bytes that were never sent before."""
    return random.Random(next(_numbers)).randbytes(200_000)


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalHub]:
    with LocalHub(conditions=AT_ONCE) as hub:
        hub.create_bucket("me/weights")
        hub.create_bucket("me/other")
        yield hub


@pytest.fixture
def hub(shared: LocalHub) -> LocalHub:
    shared.conditions = AT_ONCE
    return shared


@pytest.fixture
def client(hub: LocalHub) -> Callable[[], HubStore]:
    """A function that opens one store again, each time without remembered locators."""
    prefix = f"store{next(_numbers)}"
    return lambda: HubStore("me/weights", prefix, endpoint=hub.url)


def patient(store: ObjectStore) -> ObjectStore:
    """Wrap a store in retries, as `casweights.open` does, but without delays."""
    return RetryStore(store, sleep=lambda _: None)


def test_bytes_that_were_freed_are_sent_again(client: Callable[[], HubStore]) -> None:
    """hf_xet remembers that it sent them, and does not check whether they still exist."""
    first = content()
    for store in (client(), client()):
        for _ in range(2):
            assert patient(store).put(NAME, [first])
            assert client().get(NAME) == first
            store.delete(NAME)


def test_bytes_that_were_freed_before_they_got_a_name_are_sent_again(
    hub: LocalHub, client: Callable[[], HubStore]
) -> None:
    first = content()
    store = client()
    hub.conditions = replace(AT_ONCE, failing_path=NAME, upload_grace=60)
    with pytest.raises(StoreError, match="a simulated failure"):
        store.put(NAME, [first])
    hub.clock.advance(60)
    hub.conditions = replace(AT_ONCE, upload_grace=60)
    assert patient(store).put(NAME, [first])
    assert client().get(NAME) == first


@pytest.mark.parametrize("how", ["hinted", "listed", "read before"])
def test_a_reader_with_an_outdated_locator_gets_the_current_bytes(
    client: Callable[[], HubStore], how: str
) -> None:
    first, second = content(), content()
    writer, reader = client(), client()
    writer.put(NAME, [first])
    locator = writer.locator(NAME)
    assert locator is not None
    if how == "hinted":
        reader.use_locator(NAME, locator)
    elif how == "listed":
        assert [info.name for info in reader.list()] == [NAME]
    else:
        assert reader.get(NAME) == first
    writer.delete(NAME)
    writer.put(NAME, [second])
    part = bytearray(1000)
    patient(reader).readinto(NAME, 500, memoryview(part))
    assert part == second[500:1500]
    assert reader.get(NAME) == second
    writer.delete(NAME)
    with pytest.raises(NotFoundError):
        reader.get(NAME)


def test_bytes_that_are_freed_during_a_download_are_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = content()
    answers = CasRoutes.reconstruct
    between: list[Callable[[], object]] = []

    def reconstruct(self: CasRoutes, request: Request) -> Answer:
        answer = answers(self, request)
        for work in between:
            work()
        between.clear()
        return answer

    monkeypatch.setattr(CasRoutes, "reconstruct", reconstruct)
    with LocalHub(conditions=AT_ONCE) as hub:
        hub.create_bucket("me/weights")
        writer, reader = (HubStore("me/weights", endpoint=hub.url) for _ in range(2))
        writer.put(NAME, [first])
        assert reader.size(NAME) == len(first)
        between.append(lambda: writer.delete(NAME))
        with pytest.raises(NotFoundError):
            patient(reader).readinto(NAME, 0, memoryview(bytearray(1000)))
        assert not between


def test_copying_a_deleted_object_raises_not_found(
    hub: LocalHub, client: Callable[[], HubStore]
) -> None:
    first = content()
    source, target = client(), HubStore("me/other", f"copy{next(_numbers)}", endpoint=hub.url)
    source.put(NAME, [first])
    assert source.size(NAME) == len(first)
    client().delete(NAME)
    with pytest.raises(NotFoundError):
        target.copy_from(source, [NAME])
    assert list(target.list()) == []


def test_copying_an_object_that_is_deleted_after_the_look_up_raises_not_found(
    hub: LocalHub, client: Callable[[], HubStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's path is deleted between the look-up and the copy."""
    first = content()
    source, target = client(), HubStore("me/other", f"copy{next(_numbers)}", endpoint=hub.url)
    source.put(NAME, [first])
    looks_up = source.folder.look_up

    def look_up(names: list[str]) -> object:
        found = looks_up(names)
        client().delete(NAME)
        return found

    monkeypatch.setattr(source.folder, "look_up", look_up)
    with pytest.raises(NotFoundError):
        target.copy_from(source, [NAME])
    assert list(target.list()) == []


@pytest.mark.usefixtures("packs_apart")
def test_an_open_reader_loads_all_versions_after_a_repack_whose_old_packs_are_freed(
    client: Callable[[], HubStore],
) -> None:
    states = list(histories.history(4, 0.01, chunks=8))
    with casweights.open(patient(client()), create=True, config=CONFIG) as writer:
        versions = [writer.commit(state) for state in states]
        with casweights.open(patient(client())) as reader:
            assert_same_state(reader.load(versions[0]), states[0])
            for compression in ("small", "fast", "small"):
                packs = {info.name for info in client().list("packs/")}
                writer.repack(compression=compression, grace=timedelta(0))
                assert packs.isdisjoint(info.name for info in client().list("packs/"))
                for version, state in zip(versions, states, strict=True):
                    assert_same_state(reader.load(version), state)
        assert writer.verify().problems == ()


@pytest.mark.usefixtures("packs_apart")
def test_a_push_succeeds_after_a_repack_has_freed_the_packs(
    hub: LocalHub, client: Callable[[], HubStore]
) -> None:
    """The source is opened before the repack, and remembers locators of the old packs."""
    states = list(histories.history(3, 0.01, chunks=8))
    target = HubStore("me/other", f"push{next(_numbers)}", endpoint=hub.url)
    with casweights.open(patient(client()), create=True, config=CONFIG) as writer:
        versions = [writer.commit(state) for state in states]
        with (
            casweights.open(patient(client())) as source,
            casweights.open(patient(target), create=True, config=CONFIG) as copy,
        ):
            assert_same_state(source.load(versions[0]), states[0])
            writer.repack(compression="small", grace=timedelta(0))
            source.push(copy, ["main"])
            for version, state in zip(versions, states, strict=True):
                assert_same_state(copy.load(version), state)


@pytest.mark.usefixtures("packs_apart")
def test_loading_from_a_store_without_packs_raises_a_named_error(
    hub: LocalHub, client: Callable[[], HubStore]
) -> None:
    [state] = histories.history(1, 0.01, chunks=8, seed=90)  # other stores have none of its bytes
    with casweights.open(patient(client()), create=True, config=CONFIG) as writer:
        version = writer.commit(state)
        with casweights.open(patient(client())) as reader:
            reader.resolve("main")
            client().delete_all([info.name for info in client().list("packs/")])
            with pytest.raises(CasweightsError):
                reader.load(version)
            assert writer.verify().problems
