"""A client with the right to add objects, and without the right to delete any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import Keep, KiB, StoreConfig
from casweights.database import reflog
from casweights.errors import ConflictError, ErrorCode, StoreError
from casweights.operations import maintain, merging
from casweights.stores.hub.store import HubStore
from casweights.stores.memory import MemoryStore
from casweights.sync.publisher import Publisher
from tests.add_only import AddOnly
from tests.racing import seen_now

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.testing.hub import LocalHub
    from tests.database.conftest import MakeStore

CONFIG = StoreConfig(chunk_size=64 * KiB)


def weights(number: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((8,), float(number))}


def test_a_store_is_made_in_a_bucket_that_exists(hub: LocalHub, tmp_path: Path) -> None:
    """The right to create buckets is another one."""
    store = HubStore("me/weights", f"{tmp_path.name}-new", endpoint=hub.url, token="adder")
    for _ in range(2):
        with casweights.open(store, create=True, config=CONFIG) as repo:
            repo.commit(weights(1))
    other = HubStore("me/none", "new", endpoint=hub.url, token="adder")
    with pytest.raises(StoreError, match="does not permit") as caught:
        casweights.open(other, create=True, config=CONFIG)
    assert caught.value.code is ErrorCode.NO_PERMISSION


@pytest.mark.parametrize("kind", ["directory", "memory", "bucket", "hub", "git"])
def test_a_client_that_may_not_delete_does_everything_but_collect(
    kind: str,
    make_store: MakeStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reflog, "RECENT_MOVES", 4)
    reopen = make_store(kind)
    with reopen("adder") as repo:
        versions = [repo.commit(weights(number)).id for number in range(8)]
        with Publisher(repo, "live", maintain=2) as publisher:
            for number in range(6):
                publisher.publish(weights(20 + number), step=number)
            publisher.wait()
        repo.branch("side", versions[0])
        repo.branch("side", versions[1], force=True)
        repo.tag("v1", versions[0])
        repo.delete_branch("side")
        repo.delete_tag("v1")
        repo.delete_branch("main")
        assert repo.branches().keys() == {"live"}
        done = repo.maintain()
        assert not done.may_delete
        assert repo.undelete("side") == versions[1]
        assert repo.undelete("v1") == versions[0]
        assert repo.undelete("main", "again") == versions[-1]
        other = repo.commit(weights(30), branch="main")
        with casweights.open(MemoryStore(), create=True, config=CONFIG) as source:
            pushed = source.commit(weights(40), branch="pushed")
            source.push(repo)
        expected = {
            "again": versions[-1],
            "live": repo.branches()["live"],
            "main": other.id,
            "pushed": pushed.id,
            "side": versions[1],
        }
        assert repo.branches() == expected
        assert repo.verify().problems == ()
    with reopen("writer") as repo:
        assert repo.maintain().may_delete
        assert repo.branches() == expected
        assert repo.tags() == {"v1": versions[0]}
        assert [each.id for each in repo.log("again")] == versions[::-1]
        assert repo.verify().problems == ()


def test_two_handles_on_a_hub_cannot_commit_and_delete_at_once(
    make_store: MakeStore,
) -> None:
    reopen = make_store("hub")
    with reopen("writer") as one, reopen("writer") as two:
        first = one.commit(weights(1))
        head = two.database.refs.head("main", for_update=True)
        one.delete_branch("main")
        late = two.commit(weights(2), branch="side")
        with pytest.raises(ConflictError, match="moved or deleted") as caught:
            two.database.refs.advance("main", head, late.id, ready=seen_now)
        assert caught.value.snapshot == late.id
        assert one.branches() == two.branches() == {"side": late.id}
        assert two.undelete("main") == first.id
        assert one.branches() == {"main": first.id, "side": late.id}


@pytest.mark.usefixtures("packs_apart")
def test_maintenance_stops_merging_once_a_deletion_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maintain, "_RECENT_PACKS", 0)
    monkeypatch.setattr(merging, "FAN_IN", 2)
    objects = AddOnly(MemoryStore())
    with casweights.open(objects, create=True, config=CONFIG, workers=1) as repo:
        for number in range(8):
            repo.commit({"w": torch.rand(1000) + number})
        done = repo.maintain()
        assert not done.may_delete
        assert objects.refused == 1
        assert repo.verify().problems == ()
    with casweights.open(objects.inner, workers=1) as repo:
        merged = repo.maintain()
        assert merged.may_delete
        assert merged.packs < done.packs
        assert repo.verify().problems == ()


def test_a_client_that_may_not_delete_lets_versions_expire() -> None:
    objects = AddOnly(MemoryStore())
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        for number in range(12):
            repo.commit(weights(number))
            gone = repo.expire(Keep(last=1), apply=True).go
            assert gone == min(number, 1)
        assert objects.refused, "records were to be merged"
        assert len(list(repo.log())) == 1
        assert repo.verify().problems == ()
        repo.delete_branch("main")
        assert repo.expire(Keep(last=1), apply=True).go == 0
        assert repo.verify().problems == ()
        repo.undelete("main")
        assert len(list(repo.log())) == 1
