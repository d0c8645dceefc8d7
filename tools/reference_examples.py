"""Examples of the reference: the body of each function is shown with the classes that it names.

Tests run all of them in an empty directory; `model` is a small module of torch.
"""

# ruff: noqa: PT017, TC001

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    Example = Callable[[torch.nn.Module], None]

EXAMPLES: dict[str, Example] = {}  # by the name of the class


def shows(*names: str) -> Callable[[Example], Example]:
    """Make a function the example of these classes."""

    def register(function: Example) -> Example:
        EXAMPLES.update(dict.fromkeys(names, function))
        return function

    return register


@shows("open", "Repository", "Snapshot", "SnapshotId")
def repository(model: torch.nn.Module) -> None:
    import casweights

    with casweights.open("./store", create=True) as store:
        first = store.commit(model.state_dict(), message="before", metadata={"lr": 1e-5})
        store.tag("v1", first)
        print(store.snapshot("v1").metadata["lr"], [file.path for file in first.files])
        state = store.load("v1")
        assert store.resolve("v1") == casweights.SnapshotId.from_hex(str(first.id))
        store.checkout("v1", "./copy")  # model.safetensors, as other programs read it
    assert state.keys() == model.state_dict().keys()


@shows("LazyTensor")
def lazy_tensor(model: torch.nn.Module) -> None:
    import casweights

    with casweights.open("./store", create=True) as store:
        store.commit(model.state_dict())
        weight = store.tensor("main", "weight")
        print(weight.shape, weight.dtype)  # nothing of it is read yet
        rows = weight[0:2]
    assert len(rows) == 2


@shows("StoreConfig", "RemoteOptions")
def options(model: torch.nn.Module) -> None:
    import casweights

    config = casweights.StoreConfig(chunk_size=1 << 20)
    remote = casweights.RemoteOptions(patience=10, disk_cache=0)
    with casweights.open("./store", create=True, config=config, remote=remote) as store:
        assert store.config.chunk_size == 1 << 20


@shows("Publisher", "Subscriber", "PublishStats", "SyncStats", "PollStats", "Patch")
def live_sync(model: torch.nn.Module) -> None:
    import copy

    import casweights

    casweights.open("./store", create=True).close()
    replica = copy.deepcopy(model)
    with casweights.Publisher("./store", "policy") as publisher:
        publisher.publish(model, step=1)

    with casweights.Subscriber("./store", "policy") as subscriber:
        subscriber.prefetch(replica)
        stats = subscriber.sync()
        print(stats.changed_elements, stats.fetched_bytes, stats.apply_seconds)
        subscriber.verify()
        assert [patch.name for patch in subscriber.patches()] == []  # it holds the version already


@shows("Reporter", "Stage", "CommitStats", "CheckoutStats")
def reporter(model: torch.nn.Module) -> None:
    import casweights
    from casweights.results import CommitStats

    class Sizes(casweights.Reporter):
        stored = 0

        def committed(self, stats: CommitStats) -> None:
            self.stored += stats.stored_bytes

    sizes = Sizes()
    with casweights.open("./store", create=True, reporter=sizes) as store:
        store.commit(model.state_dict())
    assert sizes.stored > 0


@shows("StoreInfo", "StoreStats", "VersionStats", "Verification", "RepackStats", "MaintainStats")
def looking_after_a_store(model: torch.nn.Module) -> None:
    import casweights

    with casweights.open("./store", create=True) as store:
        store.commit(model.state_dict())
        stats = store.stats()
        print(store.info().url, stats.pack_bytes, [v.stored_bytes for v in stats.versions])
        assert store.verify().problems == ()
        print(store.repack().nbytes, store.maintain().packs)


@shows("Keep", "Expiry", "Verdict", "ExpiredVersion")
def expiry(model: torch.nn.Module) -> None:
    from datetime import timedelta

    import casweights
    from casweights import Keep

    with casweights.open("./store", create=True) as store:
        for step in range(10):
            store.commit(model.state_dict(), metadata={"eval": step / 10})
        policy = [Keep(last=2, every=4), Keep(branches="run-*", within=timedelta(days=7))]
        for verdict in store.expire(policy).verdicts:  # a dry run
            print(verdict.number, verdict.reasons or "goes")
        print(store.expire(policy, apply=True).go, "versions expired")
        for snapshot, expired in store.history("main"):
            print(snapshot.id, "after", [version.number for version in expired])
        store.set_policy(Keep(last=100, where="eval >= 0.7"))  # for `maintain`


@shows("RepairReport", "LostVersion")
def repairing_a_store(model: torch.nn.Module) -> None:
    from safetensors.torch import save_file

    import casweights

    save_file(model.state_dict(), "model.safetensors", {"format": "pt"})
    with casweights.open("./store", create=True) as store:
        store.commit(model.state_dict())
        report = store.repair(["model.safetensors"])
        print(report.rebuilt, [(version.snapshot, version.chunks) for version in report.lost])


@shows(
    "CollectStats", "CollectedObject", "FoldStats", "PendingCollection", "SpaceUse", "UndeleteStats"
)
def freeing_space(model: torch.nn.Module) -> None:
    import datetime

    import casweights

    with casweights.open("./store", create=True) as store:
        store.commit(model.state_dict(), branch="try")
        store.delete_branch("try")
        print([found.name for found in store.gc().objects])  # nothing is a week old
        print(store.space().young, "bytes are too young to go")
        # At once, because nobody else uses this store.
        done = store.gc(apply=True, grace=datetime.timedelta(0), confirm=store.url)
        assert done.collection is not None
        assert [found.id for found in done.pending] == [done.collection]
        assert len(store.undelete_collection(done.collection).versions) == 1


@shows("Diff", "Change", "ChangeKind")
def diff(model: torch.nn.Module) -> None:
    import torch

    import casweights

    with casweights.open("./store", create=True) as store:
        old = store.commit({"bias": torch.zeros(8), "scale": torch.ones(8)})
        new = store.commit({"bias": torch.ones(8), "scale": torch.ones(8)})
        changes = store.diff(old, new).changes
        assert [(change.kind, change.tensor) for change in changes] == [("changed", "bias")]


@shows("SimilarVersion", "SimilarTensor")
def similar(model: torch.nn.Module) -> None:
    import torch

    import casweights

    with casweights.open("./store", create=True) as store:
        base = store.commit({"w": torch.randn(256, 256)}, branch="base")
        [found] = store.similar({"renamed": store.load(base)["w"] * 1.001})
        assert found.snapshot == base.id
        assert found.nbytes < found.whole_bytes
        assert [(like.tensor, like.other_tensor) for like in found.tensors] == [("renamed", "w")]


@shows("BaseVersion", "GraphVersion")
def lineage(model: torch.nn.Module) -> None:
    import torch

    import casweights

    with casweights.open("./store", create=True) as store:
        base = store.commit({"w": torch.randn(256, 256)}, branch="base")
        tuned = store.commit({"w": store.load(base)["w"] * 1.001}, base=base)
        [found] = store.lineage(tuned)
        assert (found.snapshot, found.is_parent, found.state) == (base.id, False, "present")
        newest = next(store.graph())
        assert (newest.snapshot, newest.parents, newest.lineage) == (tuned, (), (found,))


@shows("TransferStats")
def transfer(model: torch.nn.Module) -> None:
    import casweights

    with (
        casweights.open("./store", create=True) as store,
        casweights.open("./backup", create=True) as backup,
    ):
        version = store.commit(model.state_dict())
        assert store.push(backup).refs == {"heads/main": version.id}


@shows("CasweightsError", "ErrorCode", "NotFoundError", "InvalidInputError", "UnsupportedError")
def errors(model: torch.nn.Module) -> None:
    import casweights

    try:
        casweights.open("./nowhere")
    except casweights.NotFoundError as error:
        assert error.code is casweights.ErrorCode.STORE_NOT_FOUND
        print(error.message)  # says what to do

    try:
        casweights.open("./store", create=True, workers=0)
    except casweights.InvalidInputError as error:
        assert error.code == "bad-argument"

    try:
        casweights.open("ftp://server/weights")
    except casweights.UnsupportedError as error:
        assert error.code == "unsupported"


@shows("ConflictError", "StoreError")
def conflicts(model: torch.nn.Module) -> None:
    import casweights

    with casweights.open("./store", create=True) as store:
        old = store.commit(model.state_dict())
        new = store.commit({"step": 1})
        store.tag("v1", old)
        try:
            store.tag("v1", new)  # tags do not move
        except casweights.ConflictError as error:
            print(error.code, error.message)
        except casweights.StoreError as error:  # the storage failed
            print(error.snapshot)  # is set if this version may have been committed


@shows("IntegrityError", "StaleError")
def damage(model: torch.nn.Module) -> None:
    from pathlib import Path

    import casweights

    with casweights.open("./store", create=True) as store:
        version = store.commit(model.state_dict())
        with casweights.Subscriber(store) as subscriber:
            try:
                subscriber.sync(model, expect=version)
            except casweights.StaleError as error:
                assert error.code == "stale"  # the model was not synced to `version` before

        for path in Path("./store/snapshots").iterdir():
            data = bytearray(path.read_bytes())
            data[100] ^= 1  # a byte of the first frame
            path.write_bytes(data)
    with casweights.open("./store") as store:
        try:
            store.load(version)
        except casweights.IntegrityError as error:
            print(error.code, error.suspect)


@shows("ClosedError", "WrongProcessError")
def handles(model: torch.nn.Module) -> None:
    import pickle

    import casweights

    with casweights.open("./store", create=True) as store:
        try:
            pickle.dumps(store)
        except casweights.WrongProcessError as error:
            assert error.code == "wrong-process"  # in a worker process, open the store again
    try:
        store.branches()
    except casweights.ClosedError as error:
        assert error.code == "closed"


@shows("Tee", "Logs", "Metrics")
def listeners(model: torch.nn.Module) -> None:
    from prometheus_client import CollectorRegistry

    import casweights
    from casweights.instrumentation import Tee
    from casweights.instrumentation.logs import Logs
    from casweights.instrumentation.prometheus import Metrics

    listener = Tee(Logs(), Metrics(CollectorRegistry()))
    with casweights.open("./store", create=True, reporter=listener) as store:
        store.commit(model.state_dict())


@shows("CountingStore")
def counting(model: torch.nn.Module) -> None:
    import casweights
    from casweights.stores.memory import MemoryStore
    from casweights.testing import CountingStore

    objects = CountingStore(MemoryStore())
    with casweights.open(objects, create=True) as store:
        store.commit(model.state_dict())
    print(objects.reads, objects.writes)


@shows("LocalHub", "LocalHubProcess", "Conditions", "Counts")
def local_hub(model: torch.nn.Module) -> None:
    from huggingface_hub import HfApi

    from casweights.testing.hub import Conditions, LocalHub

    with LocalHub("./hub") as hub:
        hub.create_bucket("me/weights")
        hub.conditions = Conditions(latency=0.01)  # seconds added to each request
        api = HfApi(endpoint=hub.url, token="any")
        assert [bucket.id for bucket in api.list_buckets(namespace="me")] == ["me/weights"]
