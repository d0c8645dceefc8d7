"""Code as users write it, for the type checker only: this file is never run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_type

import torch

import casweights
from casweights import (
    CasweightsError,
    ConflictError,
    LazyTensor,
    Reporter,
    Repository,
    Snapshot,
    SnapshotId,
    StoreConfig,
)
from casweights.results import BaseVersion, Diff, SyncStats

store = casweights.open("./store", create=True)
assert_type(store, Repository)
config = StoreConfig(digest="xxh3-128", chunk_size=1 << 20)
with casweights.open(Path("store"), config=config, workers=2, reporter=Reporter()) as opened:
    assert_type(opened, Repository)

snapshot = store.commit(Path("model"), branch="main", message="first", metadata={"step": 1})
assert_type(snapshot, Snapshot)
assert_type(snapshot.id, SnapshotId)
assert_type(snapshot.time, datetime)
store.commit(
    {"w": torch.ones(2), "nested": {"step": 1}}, compression="fast", time=datetime.now(UTC)
)
store.commit(torch.nn.Linear(1, 1).state_dict(), parent="main~3", branch="tuned", author="me")
store.commit(Path("merged"), base=snapshot)

assert_type(store.checkout(snapshot.id, "out", include=["*.json"]), Snapshot)
assert_type(store.checkout("main", Path("out"), delete=True), Snapshot)
assert_type(store.load(snapshot), dict[str, Any])
assert_type(store.tensor("main", "w"), LazyTensor)
assert_type(store.tensor("main", "w")[0:128], torch.Tensor)
assert_type(store.tensor("main", "w", file="model.safetensors").load(), torch.Tensor)
assert_type(store.read("main", "config.json"), Iterator[memoryview])
assert_type(store.log(), Iterator[Snapshot])
assert_type(store.lineage("main"), tuple[BaseVersion, ...])
assert_type([version.parents for version in store.graph(["v1"])], list[tuple[SnapshotId, ...]])
assert_type(store.diff("main~1", "main"), Diff)
assert_type(store.resolve("v1"), SnapshotId)
assert_type(store.branches(), dict[str, SnapshotId])
assert_type(store.tags(), dict[str, SnapshotId])
assert_type(store.tag("v1", snapshot), SnapshotId)
assert_type(store.branch("b", "main", force=True), SnapshotId)
assert_type(store.verify(quick=True).problems, tuple[CasweightsError, ...])
assert_type([version.nbytes for version in store.stats().versions], list[int])

model = torch.nn.Linear(1, 1)
with casweights.Publisher(store, "policy", compare="device", policy="skip-to-latest") as publisher:
    publisher.publish(model, step=1, metadata={"loss": 0.5})
    publisher.publish(model.state_dict())
    publisher.attach(torch.optim.AdamW(model.parameters()), model, every=2).remove()
    assert_type(publisher.wait(), Snapshot | None)
    assert_type(publisher.version, SnapshotId | None)
with casweights.Subscriber("./store", verify="patch", key_map={"a": "b"}) as subscriber:
    assert_type(subscriber.prefetch(model, to=snapshot), SnapshotId)
    assert_type(subscriber.sync(expect="v1"), SyncStats)
    assert_type(subscriber.version, SnapshotId | None)
    assert_type([patch.indices for patch in subscriber.patches()], list[torch.Tensor | None])
    subscriber.follow(lambda version: subscriber.prefetch(to=version))

try:
    store.commit("model")
except ConflictError as error:
    assert_type(error.snapshot, SnapshotId | None)

store.commit(5)  # type: ignore[arg-type]
store.commit("model", compression="best")  # type: ignore[arg-type]
store.commit("model", "main")  # type: ignore[call-arg]
store.resolve(b"main")  # type: ignore[arg-type]
StoreConfig(digest="md5")  # type: ignore[arg-type]
