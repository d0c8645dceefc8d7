"""Network failures and refusals of the Hub delay operations, and never make results wrong."""

from __future__ import annotations

import socket
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import casweights
import casweights.database.writer
from casweights import ErrorCode, IntegrityError, NotFoundError, StoreError
from casweights.stores.hub.git import GitRefStore
from casweights.stores.hub.locators import XetLocator
from casweights.stores.hub.store import HubStore
from casweights.stores.retry import RetryStore
from casweights.testing.hub import Conditions, LocalHub
from casweights.testing.states import assert_same_state
from tests.faults.hub_driver import (
    BUCKET,
    PACK,
    check_sound,
    new_store,
    opened,
    sizes,
    small_model,
    watched_uploads,
    wrapped,
)
from tests.faults.kill_driver import Digests, Model, look
from tests.histories import history

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights.ids import SnapshotId

_numbers = count()
STALL = 0.5


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.create_bucket(BUCKET)
        yield hub


@pytest.fixture
def prefix(hub: LocalHub) -> Iterator[str]:
    """The folder of an empty store at a Hub without faults."""
    prefix = f"store/{next(_numbers)}"
    new_store(hub.url, prefix)
    yield prefix
    hub.conditions = Conditions()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setattr(casweights.database.writer, "PACK_TARGET", PACK)
    return small_model(tmp_path / "model", seed=next(_numbers))  # shares nothing with others


def failing(fault: str, rate: float, **others: Any) -> Conditions:
    values: dict[str, Any] = {fault: rate, **others}
    return Conditions(**values)


WEATHERS = {
    "error": Conditions(error_rate=0.05),
    "reset": Conditions(reset_rate=0.05),
    "lost answer": Conditions(lost_answer_rate=0.05),
    "truncate": Conditions(truncate_rate=0.05),
    "stall": Conditions(stall_rate=0.05, stall=60.0),
    "mix": Conditions(
        error_rate=0.01,
        reset_rate=0.01,
        lost_answer_rate=0.01,
        truncate_rate=0.01,
        stall_rate=0.01,
        stall=60.0,
        failing_lines=2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("weather", WEATHERS)
def test_all_verbs_succeed_despite_network_faults(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path, weather: str
) -> None:
    versions: dict[SnapshotId, Digests] = {}
    states = list(history(3, density=0.01))
    hub.conditions = replace(WEATHERS[weather], seed=1)
    with opened(hub.url, prefix, tmp_path / "cache", stall=STALL) as repo:
        for state in states:
            versions[repo.commit(model.folder).id] = model.digests()
            repo.commit(state, branch="states")
            model.step()
        repo.repack()
    with (
        opened(hub.url, prefix, stall=STALL) as repo,
        casweights.open(tmp_path / "local", create=True, config=repo.config) as local,
    ):
        for version, digests in versions.items():
            repo.checkout(version, tmp_path / "out", delete=True)
            assert look(tmp_path / "out") == digests
        for n, state in enumerate(reversed(states)):
            assert_same_state(repo.load(f"states~{n}"), state)
        repo.push(local)
        pulled = local.commit(model.folder).id
        versions[pulled] = model.digests()
        local.push(repo)
    hub.conditions = Conditions()
    with opened(hub.url, prefix) as repo:
        assert repo.resolve("main") == pulled
        check_sound(repo, versions, tmp_path / "out")
        for n, state in enumerate(reversed(states)):
            assert_same_state(repo.load(f"states~{n}"), state)


@pytest.mark.parametrize("route", ["token", "xorb_upload", "shard_upload", "batch", "paths_info"])
@pytest.mark.parametrize("fault", ["error_rate", "reset_rate", "lost_answer_rate", "stall_rate"])
def test_an_upload_that_failed_at_any_stage_is_repeated_as_a_whole(
    hub: LocalHub, prefix: str, fault: str, route: str
) -> None:
    """The same store object repeats it, and must not assume that any part has arrived."""
    store = HubStore(BUCKET, prefix, endpoint=hub.url, stall=STALL)
    data = np.random.default_rng(next(_numbers)).bytes(100_000)  # never sent before
    hub.conditions = failing(fault, 1.0, stall=60.0, only=frozenset({route}))
    with pytest.raises(StoreError) as caught:
        store.put("packs/x", [data])
    assert caught.value.code is ErrorCode.UNREACHABLE
    hub.conditions = Conditions()
    assert store.put("packs/x", [data]), "this client created it, even if the answer was lost"
    assert store.get("packs/x") == data
    assert HubStore(BUCKET, prefix, endpoint=hub.url).get("packs/x") == data


def test_a_batch_that_fails_in_part_is_completed(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path
) -> None:
    with opened(hub.url, prefix) as repo:
        for lines in (1, 2):
            hub.conditions = Conditions(failing_lines=lines)
            version = repo.commit(model.folder).id
            check_sound(repo, {version: model.digests()}, tmp_path / "out")
            model.step()


@pytest.mark.parametrize("kind", ["packs/", "refs/heads/"])
def test_a_refused_object_is_named_and_no_version_becomes_visible(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path, kind: str
) -> None:
    with opened(hub.url, prefix) as repo:
        first = repo.commit(model.folder).id
        versions = {first: model.digests()}
        model.step()
        before = sizes(hub.url, prefix)
        hub.conditions = Conditions(failing_path=kind)
        with pytest.raises(StoreError, match=rf"refused.*{kind}") as caught:
            repo.commit(model.folder)
        assert caught.value.code is ErrorCode.IO_FAILED
        hub.conditions = Conditions()
        arrived = sizes(hub.url, prefix)
        assert repo.resolve("main") == first
        assert not [n for n in arrived.keys() - before.keys() if not n.startswith("packs/")]
    with opened(hub.url, prefix) as repo:
        check_sound(repo, versions, tmp_path / "out")
        with watched_uploads() as sent:
            versions[repo.commit(model.folder).id] = model.digests()
        after = sizes(hub.url, prefix)
        assert arrived.items() <= after.items()
        assert sum(sent) == sum(after.values()) - sum(arrived.values())
        check_sound(repo, versions, tmp_path / "out")


def test_a_move_stays_while_its_version_cannot_be_copied(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path
) -> None:
    with opened(hub.url, prefix) as repo:
        versions = {repo.commit(model.folder).id: model.digests()}
        repo.delete_branch("main")
        hub.conditions = Conditions(failing_path="snapshots/")
        with pytest.raises(StoreError, match=r"refused.*snapshots/"):
            repo.maintain()
        hub.conditions = Conditions()
        check_sound(repo, versions, tmp_path / "out")
        assert list(repo.deleted().values()) == [*versions]
        repo.maintain()
        check_sound(repo, versions, tmp_path / "out")
        assert repo.branches() == {}


def test_objects_after_a_refused_one_are_withdrawn_despite_network_faults(
    hub: LocalHub, prefix: str
) -> None:
    """The first line of a batch is refused, and the request to withdraw the rest fails once."""
    bucket = HubStore(BUCKET, prefix, endpoint=hub.url)
    batch, calls = bucket.api.batch, count(1)

    def failing_batch(operations: list[dict[str, object]]) -> dict[str, str]:
        if operations[0]["type"] == "deleteFile" and next(calls) == 1:
            raise StoreError(ErrorCode.UNREACHABLE, "the network fails")
        return batch(operations)

    vars(bucket.api)["batch"] = failing_batch
    hub.conditions = Conditions(failing_path="packs/")
    store = RetryStore(bucket, sleep=lambda _: None)
    with pytest.raises(StoreError, match=r"refused.*packs/x"):
        store.put_all([("packs/x", [b"pack"]), ("snapshots/x", [b"snapshot"])])
    assert not bucket.exists("snapshots/x")
    hub.conditions = Conditions()
    assert store.put_all([("packs/x", [b"pack"]), ("snapshots/x", [b"snapshot"])]) == [True, True]


def test_objects_that_arrived_before_a_fault_are_not_sent_again(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path
) -> None:
    with opened(hub.url, prefix, patience=0.0) as repo:
        hub.conditions = Conditions(error_rate=1, only=frozenset({"tree"}))
        with pytest.raises(StoreError):
            repo.commit(model.folder, branch="main")
        hub.conditions = Conditions(failing_path="refs/")
        with pytest.raises(StoreError, match="refs/"):
            repo.commit(model.folder)
    hub.conditions = Conditions()
    arrived = sizes(hub.url, prefix)
    assert (
        sum(size for name, size in arrived.items() if name.startswith(("packs/", "snapshots/")))
        > 500_000
    )
    with opened(hub.url, prefix) as repo:
        with watched_uploads() as sent:
            version = repo.commit(model.folder).id
        assert sum(sent) < 20_000
        check_sound(repo, {version: model.digests()}, tmp_path / "out")


@pytest.fixture(params=["nobody listens", "nobody answers"])
def dead_url(request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        if request.param == "nobody listens":
            server.close()
        yield url


@pytest.mark.parametrize("create", [False, True])
def test_a_dead_hub_is_unreachable(dead_url: str, create: bool) -> None:
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        casweights.open(wrapped(dead_url, "x", patience=1.0, stall=0.5), create=create)
    assert caught.value.code is ErrorCode.UNREACHABLE


@pytest.mark.parametrize("route", ["reconstruction", "xorb_read", "token"])
@pytest.mark.parametrize("fault", ["stall_rate", "reset_rate", "error_rate"])
def test_a_dead_storage_is_unreachable(
    hub: LocalHub, prefix: str, model: Model, tmp_path: Path, route: str, fault: str
) -> None:
    """The Hub answers, but its storage (CAS) does not."""
    with opened(hub.url, prefix) as repo:
        repo.commit(model.folder)
    store = wrapped(hub.url, prefix, patience=0.5, stall=0.5)
    hub.conditions = failing(fault, 1.0, stall=600.0, only=frozenset({route}))
    with casweights.open(store, workers=2) as repo:
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            repo.checkout("main", tmp_path / "out")
        assert caught.value.code is ErrorCode.UNREACHABLE
        assert look(tmp_path / "out") == {}
        hub.conditions = Conditions()
        vars(store)["_patience"] = 60.0  # a busy machine may take longer to recover
        repo.checkout("main", tmp_path / "out")
        assert look(tmp_path / "out") == model.digests()


@pytest.mark.parametrize("fault", ["reset_rate", "error_rate", "lost_answer_rate"])
def test_an_answer_that_never_begins_is_not_reported_as_damage(hub: LocalHub, fault: str) -> None:
    """The client ends such a stream without an error, sometimes: hence many attempts."""
    store = HubStore(BUCKET, "dead", endpoint=hub.url, stall=STALL)
    store.put("packs/x", [np.random.default_rng(next(_numbers)).bytes(1000)])
    hub.conditions = failing(fault, 1.0, only=frozenset({"reconstruction"}))
    for _ in range(5):
        with pytest.raises(StoreError, match="cannot be reached"):
            store.get("packs/x", 0, 500)
    hub.conditions = Conditions()
    assert len(store.get("packs/x", 0, 500)) == 500


def test_a_range_beyond_the_stored_bytes_is_reported_as_damage(hub: LocalHub) -> None:
    store = HubStore(BUCKET, "short", endpoint=hub.url)
    data = np.random.default_rng(next(_numbers)).bytes(1000)
    store.put("packs/x", [data])
    locator = XetLocator.decode(store.locator("packs/x") or b"")
    assert locator is not None
    longer = locator._replace(size=3000)
    for start in (500, 1000, 2000):
        with pytest.raises(IntegrityError, match="packs/x is damaged: it is truncated"):
            store._xet.download(longer, start, memoryview(bytearray(900)), "packs/x")


def test_a_token_without_the_right_is_an_error_that_names_the_login(
    tmp_path: Path, model: Model
) -> None:
    with LocalHub(tokens={"writer": "write", "reader": "read"}) as hub:
        hub.create_bucket(BUCKET, private=True)
        store = wrapped(hub.url, "x", token="writer")
        with casweights.open(store, create=True) as repo:
            version = repo.commit(model.folder).id
            log = [version]
        with opened(hub.url, "x", token="reader") as repo:
            check_sound(repo, {version: model.digests()}, tmp_path / "out")
            model.step()
            with pytest.raises(StoreError, match="hf auth login") as caught:
                repo.commit(model.folder)
            assert caught.value.code is ErrorCode.NO_PERMISSION
            assert [snapshot.id for snapshot in repo.log()] == log
        for token in ("unknown", ""):
            with pytest.raises(StoreError, match="hf auth login") as caught:
                casweights.open(wrapped(hub.url, "x", token=token or "other"))
            assert caught.value.code is ErrorCode.NO_PERMISSION


@pytest.mark.parametrize("create", [False, True])
def test_a_missing_bucket_is_created_or_reported(hub: LocalHub, create: bool) -> None:
    store = HubStore(f"me/missing{next(_numbers)}", "x", endpoint=hub.url)
    if create:
        casweights.open(store, create=True).close()
        casweights.open(store).close()
        return
    with pytest.raises(NotFoundError) as caught:
        casweights.open(store)
    assert caught.value.code is ErrorCode.STORE_NOT_FOUND


@pytest.mark.slow
def test_a_token_that_expires_during_a_transfer_is_renewed(
    hub: LocalHub, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    data = np.random.default_rng(1).bytes(2_000_000)
    (tmp_path / "model" / "weights.bin").write_bytes(data)
    hub.conditions = Conditions(token_lifetime=2.0, bandwidth=400_000.0)
    with opened(hub.url, prefix) as repo:
        hub.reset_counters()
        repo.commit(tmp_path / "model")
        assert hub.counters().requests["token"] >= 2
    with opened(hub.url, prefix) as repo:
        hub.reset_counters()
        repo.checkout("main", tmp_path / "out")
        assert hub.counters().requests["token"] >= 2
    assert (tmp_path / "out" / "weights.bin").read_bytes() == data


@pytest.mark.parametrize("fault", ["error_rate", "reset_rate", "lost_answer_rate"])
def test_refs_in_a_repository_survive_network_faults(hub: LocalHub, fault: str) -> None:
    where = f"datasets/me/refs{next(_numbers)}"
    GitRefStore(where, "hf://buckets/me/weights", "ab" * 16, endpoint=hub.url).create()
    store = RetryStore(GitRefStore(where, "hf://buckets/me/weights", "ab" * 16, endpoint=hub.url))
    hub.conditions = failing(fault, 0.1, seed=2)
    try:
        for n in range(6):
            assert store.put(f"refs/{n}", [b"%d" % n]), "exactly one attempt must create it"
            assert not store.put(f"refs/{n}", [b"other"])
            assert store.read(f"refs/{n}", 10) == b"%d" % n
        store.delete_all([f"refs/{n}" for n in range(3)])
    finally:
        hub.conditions = Conditions()
    assert [info.name for info in store.list()] == sorted(f"refs/{n}" for n in range(3, 6))
