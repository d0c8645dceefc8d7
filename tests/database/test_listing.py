"""Waits for listings that lag."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from casweights.database import listing
from casweights.database.expired import ExpiredStore
from casweights.database.listing import LISTING_SECONDS, find_listed, looks
from casweights.errors import StoreError
from casweights.format import names
from casweights.format.expired import EncodedRecord
from casweights.operations.collections import looking
from casweights.stores.memory import MemoryStore
from tests.waiting import Time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.stores.base import ObjectInfo


class Lagging(MemoryStore):
    """A store whose listings are empty for a time."""

    def __init__(self, clock: Time, until: float) -> None:
        super().__init__()
        self._clock, self.until = clock, until

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return super().list(prefix) if self._clock.monotonic() >= self.until else iter(())


@pytest.fixture
def clock() -> Iterator[Time]:
    with patch.object(listing, "time", Time()) as clock:
        yield clock


def test_an_object_is_found_once_a_listing_shows_it(clock: Time) -> None:
    store = Lagging(clock, 20)
    store.put("a", [b"one"])
    store.put("ab", [b"another"])
    found = find_listed(store, "a")
    assert found is not None
    assert (found.name, found.size) == ("a", 3)
    assert 20 <= clock.monotonic() < 23


def test_the_wait_ends_if_no_listing_shows_it(clock: Time) -> None:
    store = Lagging(clock, 0)
    store.put("ab", [b"another"])
    assert find_listed(store, "a") is None
    assert LISTING_SECONDS < clock.monotonic() < LISTING_SECONDS + 3


def test_a_function_is_called_once_more_when_the_time_is_over(clock: Time) -> None:
    assert [*looks(clock.monotonic)][-1] > LISTING_SECONDS
    clock.sleep(100)
    assert [*looks(lambda: 7)] != []


def test_a_record_that_no_listing_shows_replaces_no_other(clock: Time) -> None:
    store = Lagging(clock, 10**9)
    records = ExpiredStore(store)
    record = EncodedRecord(f"{names.EXPIRED}x", b"x", 1)
    store.put(record.name, [record.data])
    assert not records._is_sound(record)
    store.until = 0
    assert records._is_sound(record)


def test_a_collection_needs_a_listing_that_shows_what_it_wrote(clock: Time) -> None:
    with (
        pytest.raises(StoreError, match=r"does not list .* 30 s after"),
        looking(Lagging(clock, 99)),
    ):
        pass
    with looking(Lagging(clock, 20)) as now:
        assert now > 0
