"""Tests of the bad networks and servers that the local Hub simulates."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import pytest

from casweights.testing.hub import Conditions, Counts, LocalHub, LocalHubProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OBJECT = "/s3/me/weights/object"
INFO = "/api/buckets/me/weights"


class Reply(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path) as hub:
        hub.create_bucket("me/weights")
        yield hub


def ask(hub: LocalHub, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
    address = urlsplit(hub.url)
    connection = HTTPConnection(str(address.hostname), address.port, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Reply(response.status, response.read(), dict(response.headers))
    finally:
        connection.close()


def seconds(hub: LocalHub, method: str, path: str, body: bytes | None = None) -> float:
    start = time.monotonic()
    assert ask(hub, method, path, body).status == 200
    return time.monotonic() - start


def outcomes(hub: LocalHub, times: int) -> list[int]:
    """Send requests one by one; return their statuses, 0 for an incomplete response."""
    found = []
    for _ in range(times):
        try:
            found.append(ask(hub, "GET", INFO).status)
        except (OSError, HTTPException):
            found.append(0)
    return found


def test_requests_and_bytes_are_counted(hub: LocalHub) -> None:
    ask(hub, "PUT", OBJECT, b"x" * 1000)
    ask(hub, "GET", OBJECT)
    ask(hub, "GET", OBJECT)
    ask(hub, "GET", "/nowhere")
    ask(hub, "GET", "/_hub/counters")
    counts = hub.counters()
    assert counts.requests == {"s3_put": 1, "s3_get": 2, "unknown": 1}
    assert counts.requests["tree"] == 0
    assert counts.total == 4
    assert (counts.bytes_in, counts.bytes_in_by_route) == (1000, {"s3_put": 1000})
    assert counts.bytes_out_by_route["s3_get"] == 2000
    assert counts.bytes_out == sum(counts.bytes_out_by_route.values())
    assert Counts.from_json(counts.to_json()) == counts
    hub.reset_counters()
    assert hub.counters() == Counts.of({}, {}, {})


def test_latency_is_added_to_each_request(hub: LocalHub) -> None:
    hub.conditions = Conditions(latency=0.5)
    assert seconds(hub, "GET", INFO) >= 0.5
    assert seconds(hub, "GET", "/_hub/counters") < 0.5


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_bandwidth_is_shared_by_all_connections(hub: LocalHub, method: str) -> None:
    body = bytes(range(256)) * 400
    ask(hub, "PUT", OBJECT, body)
    hub.conditions = Conditions(bandwidth=512_000)
    sent = body if method == "PUT" else None
    start = time.monotonic()
    threads = [
        threading.Thread(target=ask, args=(hub, method, f"{OBJECT}", sent)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.3 <= time.monotonic() - start < 10


def test_errors_occur_at_the_configured_rate(hub: LocalHub) -> None:
    hub.conditions = Conditions(error_rate=0.5, seed=1)
    first = Counter(outcomes(hub, 100))
    assert first.keys() == {200, 500, 503}
    assert 30 <= first[200] <= 70
    hub.conditions = hub.conditions
    assert Counter(outcomes(hub, 100)) == first


def test_a_request_that_fails_leaves_the_work_undone(hub: LocalHub) -> None:
    hub.conditions = Conditions(error_rate=1, only=frozenset({"s3_put"}))
    assert ask(hub, "PUT", OBJECT, b"x").status in (500, 503)
    assert ask(hub, "GET", OBJECT).status == 404


def test_a_lost_answer_leaves_the_work_done(hub: LocalHub) -> None:
    hub.conditions = Conditions(lost_answer_rate=1, only=frozenset({"s3_put"}))
    with pytest.raises((OSError, HTTPException)):
        ask(hub, "PUT", OBJECT, b"x")
    assert ask(hub, "GET", OBJECT).body == b"x"


def test_a_reset_leaves_the_work_undone(hub: LocalHub) -> None:
    hub.conditions = Conditions(reset_rate=1, only=frozenset({"s3_put"}))
    with pytest.raises((OSError, HTTPException)):
        ask(hub, "PUT", OBJECT, b"x")
    assert ask(hub, "GET", OBJECT).status == 404


def test_truncated_answers_end_early(hub: LocalHub) -> None:
    ask(hub, "PUT", OBJECT, b"x" * 100_000)
    hub.conditions = Conditions(truncate_rate=1)
    with pytest.raises(HTTPException, match="50000 bytes read"):
        ask(hub, "GET", OBJECT)


def test_stalls_end_with_the_server(tmp_path: Path) -> None:
    with LocalHub(tmp_path, conditions=Conditions(stall_rate=1, stall=0.3)) as hub:
        hub.create_bucket("me/weights")
        assert seconds(hub, "GET", INFO) >= 0.3
        hub.conditions = Conditions(stall_rate=1, stall=600)
        thread = threading.Thread(target=outcomes, args=(hub, 1))
        thread.start()
        time.sleep(0.1)
        start = time.monotonic()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert time.monotonic() - start < 10


def test_pages_of_folders_and_files_are_in_order(hub: LocalHub) -> None:
    for path in ("a", "a.b", "a/x", "a/y", "b/x", "c"):
        ask(hub, "PUT", f"/s3/me/weights/{path.replace('/', '%2F')}x", b"")
    found = []
    path = f"{INFO}/tree?limit=1&recursive=false"
    while path:
        reply = ask(hub, "GET", path)
        found += [entry["path"] for entry in json.loads(reply.body)]
        link = reply.headers.get("Link", "")
        path = link.partition(">")[0].removeprefix(f"<{hub.url}")
    assert found == ["a", "a.bx", "ax", "b", "cx"]


def test_conditions_survive_a_round_trip_through_json() -> None:
    conditions = Conditions(bandwidth=1e6, only=frozenset({"batch", "tree"}), failing_path="x")
    assert Conditions.from_json(conditions.to_json()) == conditions
    with pytest.raises(TypeError):
        Conditions.from_json('{"unknown": 1}')


def test_a_hub_in_another_process_has_the_same_controls(tmp_path: Path) -> None:
    with LocalHubProcess(tmp_path, {"secret": "write"}) as hub:
        hub.create_bucket("me/weights", private=True)
        hub.conditions = Conditions(latency=0.01)
        assert hub.conditions == Conditions(latency=0.01)
        assert ask(hub, "GET", INFO).status == 401  # type: ignore[arg-type]
        assert ask(hub, "GET", INFO, Authorization="Bearer secret").status == 200  # type: ignore[arg-type]
        assert hub.counters().requests == {"bucket_info": 2}
        hub.reset_counters()
        assert hub.counters().total == 0
        with pytest.raises(LookupError, match="there is no byte"):
            hub.corrupt_object("me/weights", "missing", 0)


def test_a_port_that_is_taken_leaves_nothing_behind(hub: LocalHub, tmp_path: Path) -> None:
    port = urlsplit(hub.cas_url).port
    assert port is not None
    with pytest.raises(OSError, match="in use"):
        LocalHub(tmp_path / "other", cas_port=port)
