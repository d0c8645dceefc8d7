"""A trainer and a replica, as processes that run one command after another.

Usage: python -m tools.bench.sync.jobs ROLE OPTIONS, with the options as JSON. Commands arrive on
standard input, in the form that `tools.bench.workers` defines.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3
import numpy as np
import torch

import casweights
from casweights.events import Reporter
from casweights.stores.url import open_object_store
from casweights.sync.publisher import Publisher
from casweights.sync.subscriber import Subscriber
from tools.bench import memory
from tools.bench.hub.jobs import import_modules
from tools.bench.hub.model import Model
from tools.bench.hub.patch import Patches, apply_patch, write_v1, write_v3
from tools.bench.hub.plain import create_bucket, fetch, upload
from tools.bench.hub.probe import Probe
from tools.bench.hub.reads import RecordingStore
from tools.bench.workers import serve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casweights import SnapshotId
    from casweights.results import PublishStats

_WAIT = 600.0  # seconds, for operations that should take a few
_WRITERS = {"v1": write_v1, "v3": write_v3}


class Trainer(Reporter):
    """Trains a synthetic model, and sends each step in several ways.

    Args:
        probe: A probe of the Hub.
        size: Bytes of the model.
        seed: Seed of the model.
        url: Store for the versions.
        bucket: Bucket for the patches.
        scratch: A directory for files in transit.
        compare: Where the publisher compares tensors, as in `Publisher`.
        hidden: Width of the model's layers; by default it depends on the size.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        size: int,
        seed: int,
        url: str,
        bucket: str,
        scratch: str,
        compare: Any = "host",
        hidden: int | None = None,
    ) -> None:
        self._probe = probe
        self._model = Model(size, seed, hidden)
        self._model.make()
        self._state = self._model.tensors()
        self._url, self._bucket, self._scratch = url, bucket, Path(scratch)
        self._compare = compare
        self._stats: PublishStats | None = None
        self._sent = 0

    def published(self, stats: PublishStats) -> None:
        self._stats = stats

    def begin(self) -> Any:
        """Publish the first version; return the results of `publish`."""
        self._store = RecordingStore(open_object_store(self._url))
        repository = casweights.open(self._store, create=True)
        self._publisher = Publisher(repository, compare=self._compare, reporter=self)
        return self.publish()

    def begin_patches(self, numpy: bool) -> Any:
        """Copy the weights for later patches, allocate memory for `copy`, return their size."""
        create_bucket(self._bucket)
        self._patches = Patches(self._state, numpy=numpy)
        self._flat = torch.from_numpy(self._model.flat.view(np.int16))
        self._copy = self._flat.clone()
        return self._model.nbytes

    def step(self, share: float) -> Any:
        """Take a step; return the share of elements that changed."""
        return self._model.step(share)

    def publish(self) -> Any:
        """Publish the weights, and wait until they are durable; return costs and statistics."""
        blocked = 0.0

        def run() -> None:
            nonlocal blocked
            start = time.perf_counter()
            self._publisher.publish(self._state)
            blocked = time.perf_counter() - start
            self._publisher.wait(_WAIT)

        self._store.calls.clear()
        begin, start = time.monotonic(), time.perf_counter()
        spent = self._probe.count(run)
        return {
            "spent": spent.to_json(),
            "blocked": blocked,
            "begin": begin,
            "snapshot": str(self._publisher.version),
            "stats": _numbers(self._stats),
            "calls": _timeline(self._store, start),
        }

    def send(self, version: str) -> Any:
        """Write a patch and upload it, as TRL does; return costs, name and size."""
        self._sent += 1
        path = self._scratch / f"{self._sent:06}-{version}.safetensors"

        def run() -> None:
            _WRITERS[version](self._patches.find(), path)
            upload(self._bucket, [(str(path), path.name)])

        spent = self._probe.count(run)
        size = path.stat().st_size
        path.unlink()
        return {"spent": spent.to_json(), "name": path.name, "size": size}

    def copy(self) -> Any:
        """Copy the model; return the seconds."""
        start = time.perf_counter()
        self._copy.copy_(self._flat)
        return time.perf_counter() - start

    def hash(self) -> Any:
        """Hash the model with BLAKE3 on all processors; return the seconds."""
        start = time.perf_counter()
        blake3.blake3(self._model.flat.view(np.uint8).data, max_threads=blake3.blake3.AUTO)
        return time.perf_counter() - start

    def digest(self) -> Any:
        """Return a digest of the model."""
        return _digest(self._state)

    def peak(self, share: float) -> Any:
        """Return the peak memory, in addition to the model, of a first version and of steps."""
        before = memory.resident()
        memory.forget_peak()
        self.begin()
        first = memory.peak() - before
        memory.forget_peak()
        for _ in range(3):
            self.step(share)
            self.publish()
        return {"first": first, "steps": memory.peak() - before, "model": self._model.nbytes}

    def build(self, steps: int, share: float, target: str) -> Any:
        """Publish many steps to a directory and push them; return the first version's bytes."""
        first = self.begin()["stats"]["stored_bytes"]
        for n in range(steps):
            self.step(share)
            self._publisher.publish(self._state, step=n)
        self._publisher.wait(_WAIT)
        with (
            casweights.open(self._url) as local,
            casweights.open(target, create=True) as bucket,
        ):
            local.push(bucket)
        return {"first": first, "nbytes": self._model.nbytes}

    def upload_plain(self) -> Any:
        """Upload the weights as a plain file."""
        create_bucket(self._bucket)
        path = self._scratch / "plain.safetensors"
        self._model.write(path)
        upload(self._bucket, [(str(path), path.name)])
        path.unlink()


class Replica:
    """Follows a trainer with live weights.

    Args:
        probe: A probe of the Hub.
        size: Bytes of the model.
        seed: Seed of the model.
        url: Store with the versions.
        bucket: Bucket with the patches.
        scratch: A directory for files in transit.
        hidden: Width of the model's layers; by default it depends on the size.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        size: int,
        seed: int,
        url: str,
        bucket: str,
        scratch: str,
        hidden: int | None = None,
    ) -> None:
        self._probe = probe
        self._bucket, self._scratch = bucket, Path(scratch)
        self._size, self._seed, self._url = size, seed, url
        shapes = Model(size, seed, hidden).state
        self._live = {name: torch.ones(len(x), dtype=torch.bfloat16) for name, x in shapes.items()}
        self._applied: dict[str, tuple[float, float]] = {}
        self._news = threading.Condition()
        self._stop = threading.Event()

    def begin(self) -> Any:
        """Get the latest version as a new replica; return costs and statistics."""
        self._store = RecordingStore(open_object_store(self._url))

        def run() -> None:
            self._subscriber = Subscriber(self._store)
            self._stats = self._subscriber.sync(self._live)

        return {"spent": self._probe.count(run).to_json(), "stats": _numbers(self._stats)}

    def begin_patches(self) -> Any:
        """Make the weights that the first patch changes; return their number of bytes."""
        model = Model(self._size, self._seed)
        model.make()
        self._patched = model.tensors()
        return model.nbytes

    def sync(self, to: str) -> Any:
        """Fetch a version and apply it; return costs, pause and statistics."""
        pause = 0.0

        def run() -> None:
            nonlocal pause
            pause = self._apply(to)

        self._store.calls.clear()
        start = time.perf_counter()
        spent = self._probe.count(run)
        return {
            "spent": spent.to_json(),
            "pause": pause,
            "stats": _numbers(self._stats),
            "calls": _timeline(self._store, start),
        }

    def receive(self, name: str) -> Any:
        """Fetch a patch and apply it, as TRL does; all of this time is the pause."""
        path = self._scratch / f"received-{name}"

        def run() -> None:
            fetch(self._bucket, [(name, str(path))])
            apply_patch(path, self._patched)

        spent = self._probe.count(run)
        path.unlink()
        return {"spent": spent.to_json(), "pause": spent.seconds}

    def follow(self) -> None:
        """Start to poll, and apply every new version."""
        self._stop.clear()
        self._follower = threading.Thread(
            target=self._subscriber.follow, args=(self._note,), kwargs={"stop": self._stop}
        )
        self._follower.start()

    def followed(self, snapshot: str) -> Any:
        """Wait until a version is applied; return the monotonic time of that, and the pause."""
        with self._news:
            if not self._news.wait_for(lambda: snapshot in self._applied, _WAIT):
                raise TimeoutError(f"version {snapshot} was not applied within {_WAIT:.0f} s")
            return self._applied[snapshot]

    def stop(self) -> None:
        """Stop polling."""
        self._stop.set()
        self._follower.join()

    def digest(self) -> Any:
        """Return a digest of the weights."""
        return _digest(self._live)

    def digest_patched(self) -> Any:
        """Return a digest of the weights to which patches are applied."""
        return _digest(self._patched)

    def peak(self) -> Any:
        """Return the peak memory, in addition to the model, of getting a first version."""
        return self._peak(self.begin)

    def peak_sync(self, to: str) -> Any:
        """Return the peak memory of getting the next version, beyond that in use before."""
        return self._peak(lambda: self.sync(to))

    def _peak(self, function: Any) -> int:
        before = memory.resident()
        memory.forget_peak()
        function()
        return memory.peak() - before

    def _apply(self, snapshot: str) -> float:
        """Apply a version; return the seconds in which the replica may not generate."""
        self._subscriber.prefetch(to=snapshot)
        start = time.perf_counter()
        self._stats = self._subscriber.sync()
        return time.perf_counter() - start

    def _note(self, snapshot: SnapshotId) -> None:
        pause = self._apply(str(snapshot))
        with self._news:
            self._applied[str(snapshot)] = time.monotonic(), pause
            self._news.notify_all()


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of all bits of a state."""
    digest = blake3.blake3(max_threads=blake3.blake3.AUTO)
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.view(torch.int16).numpy().view(np.uint8).data)
    return digest.hexdigest()


def _numbers(stats: object) -> dict[str, Any]:
    names = getattr(stats, "__dataclass_fields__", {})
    values = {name: getattr(stats, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def _timeline(store: RecordingStore, start: float) -> Sequence[tuple[str, float, float]]:
    """Return name, begin (relative to `start`) and seconds of each call of a store."""
    calls = sorted(store.calls, key=lambda call: call.start)
    return [(call.text, call.start - start, call.end - call.start) for call in calls]


ROLES = {"trainer": Trainer, "replica": Replica}


def main(arguments: Sequence[str]) -> int:
    role, text = arguments
    import_modules()
    serve(ROLES[role](Probe(os.environ["HF_ENDPOINT"]), **json.loads(text)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
