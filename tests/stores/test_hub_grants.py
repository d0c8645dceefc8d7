"""Tests of grants for the Hub's storage that end, also on machines with wrong clocks."""

from __future__ import annotations

import os
import time
from email.utils import formatdate
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from casweights.errors import ErrorCode, StoreError
from casweights.stores.hub import xet
from casweights.stores.hub.api import HubApi
from casweights.stores.hub.store import HubStore
from casweights.stores.retry import RetryStore
from casweights.testing.hub import Conditions, LocalHub

if TYPE_CHECKING:
    from collections.abc import Iterator

TWO_HOURS = 7200.0  # twice as long as grants last
NOW = 1_700_000_000.0  # in seconds since 1970
UPLOADS = ("xorb_grant", "granted_upload", "xorb_commit", "xorb_upload", "shard_upload")  # routes


class Waits:
    """Counts the waits of a `RetryStore` instead of sleeping."""

    count = 0

    def __call__(self, seconds: float) -> None:
        self.count += 1
        assert self.count < 3


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def store(hub: LocalHub, request: pytest.FixtureRequest) -> Iterator[HubStore]:
    bucket = f"me/{request.node.name.replace('_', '-')[:60]}"
    hub.create_bucket(bucket)
    store = HubStore(bucket, endpoint=hub.url)
    store.put("first", [b"first" * 1000])
    store.readinto("first", 0, memoryview(bytearray(5)))
    hub.reset_counters()
    yield store
    hub.conditions = Conditions()


def test_an_upload_requests_one_new_grant_after_the_old_one_has_ended(
    hub: LocalHub, store: HubStore
) -> None:
    hub.clock.advance(TWO_HOURS)
    waits = Waits()
    assert RetryStore(store, sleep=waits).put("second", [b"second"])
    assert waits.count == 1
    assert hub.counters().requests["token"] == 1


def test_a_download_requests_one_new_grant_after_the_old_one_has_ended(
    hub: LocalHub, store: HubStore
) -> None:
    hub.clock.advance(TWO_HOURS)
    assert store.get("first", 1, 4) == b"irst"
    assert hub.counters().requests["token"] == 1


@pytest.mark.parametrize("used", ["put", "get"])
def test_a_new_grant_that_is_refused_is_a_lack_of_permission(
    hub: LocalHub, store: HubStore, used: str
) -> None:
    hub.conditions = Conditions(token_lifetime=-1)
    hub.clock.advance(TWO_HOURS)
    waits = Waits()
    again = RetryStore(store, sleep=waits)
    with pytest.raises(StoreError) as caught:
        _ = again.put("second", [b"second"]) if used == "put" else again.get("first", 1, 4)
    assert caught.value.code is ErrorCode.NO_PERMISSION
    assert waits.count == (used == "put")


@pytest.mark.parametrize("error", [0.0, 1e8, -1e8])
@pytest.mark.parametrize("dated", [True, False])
def test_the_life_of_a_grant_does_not_depend_on_this_machines_clock(
    monkeypatch: pytest.MonkeyPatch, error: float, *, dated: bool
) -> None:
    uptime, asked = 1000.0, 0

    def request(*_: Any, **__: Any) -> Any:
        nonlocal asked
        asked += 1
        headers = {"Date": formatdate(NOW, usegmt=True)} if dated else {}
        answer = {"casUrl": "", "accessToken": "", "exp": int(NOW) + 3600}
        return SimpleNamespace(headers=headers, json=lambda: answer)

    monkeypatch.setattr(time, "monotonic", lambda: uptime)
    monkeypatch.setattr(time, "time", lambda: NOW + (error if dated else 0.0))
    api = HubApi("me/bucket")
    monkeypatch.setattr(api, "request", request)
    api.grant("write")
    uptime += 3500.0
    api.grant("write")
    assert asked == 1
    uptime += 60.0
    api.grant("write")
    assert asked == 2


def sent(hub: LocalHub, store: HubStore, nbytes: int) -> dict[str, int]:
    """Put a new object; return the requests to the storage, by route."""
    hub.reset_counters()
    content = os.urandom(nbytes)
    assert RetryStore(store, sleep=Waits()).put(content[:8].hex(), [content])
    assert store.get(content[:8].hex()) == content
    requests = hub.counters().requests
    return {name: n for name, n in requests.items() if name in UPLOADS and n}


def test_small_uploads_ask_for_no_place_to_send_bytes_to(
    hub: LocalHub, store: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xet, "_DIRECT_BYTES", 1000)
    for grants in (False, True):
        hub.conditions = Conditions(upload_grants=grants)
        assert sent(hub, store, 1000) == {"xorb_upload": 1, "shard_upload": 1}
    assert sent(hub, store, 1001) == {
        "xorb_grant": 1,
        "granted_upload": 1,
        "xorb_commit": 1,
        "shard_upload": 1,
    }


def test_uploads_ask_once_the_storage_has_refused_a_direct_one(
    hub: LocalHub, store: HubStore
) -> None:
    hub.conditions = Conditions(upload_grants=True, direct_uploads=False)
    by_grant = {"xorb_grant": 1, "granted_upload": 1, "xorb_commit": 1, "shard_upload": 1}
    assert sent(hub, store, 1000) == {"xorb_upload": 1, **by_grant}
    assert sent(hub, store, 1000) == by_grant
