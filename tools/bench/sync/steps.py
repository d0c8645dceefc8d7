"""Sends steps from a trainer to replicas over a local Hub, by live sync and by TRL's patches."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from tools.bench.hub.clients import fresh_hub, note_progress, scratch_folder
from tools.bench.hub.probe import UNSHAPED, Line, Spent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.bench.hub.clients import Clients
    from tools.bench.workers import Worker

SHARE = 0.01
_JOBS = "tools.bench.sync.jobs"
BUCKET = "me/patches"
URL = "hf://buckets/me/weights/run"
LINES = {
    "unshaped": UNSHAPED,
    "1gbit": Line(name="1 Gbit/s", latency=0.05, bandwidth=125e6),
    "200mbit": Line(name="200 Mbit/s", latency=0.1, bandwidth=25e6),
}

_seeds = count(1)  # a new seed for each model, so that the storage has none of its data


class Way(NamedTuple):
    """The costs of a step that is sent in one way.

    Attributes:
        up: Costs of the trainer, until the step is durable.
        down: Costs of the replica, from the announcement until the step is applied.
        pause: Seconds in which the replica may not generate.
    """

    up: Spent
    down: Spent
    pause: float

    @property
    def seconds(self) -> float:
        """Seconds from the start of publishing until the step is applied."""
        return self.up.seconds + self.down.seconds

    @property
    def nbytes(self) -> int:
        """Number of bytes of bodies that the trainer sent and the replica received."""
        return self.up.sent + self.down.received


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a trainer that one replica follows.

    Attributes:
        ours: Costs with publisher and subscriber.
        patch: Costs with one of TRL's patches.
        patch_size: Bytes of the patch's file.
        blocked: Seconds that the trainer spent in `publish`.
        copy: Seconds of a copy of the model.
        changed: Number of elements that changed.
        published: Statistics of the publisher, and its store calls.
        synced: Statistics of the subscriber, and its store calls.
    """

    ours: Way
    patch: Way
    patch_size: int
    blocked: float
    copy: float
    changed: int
    published: dict[str, Any]
    synced: dict[str, Any]


class Run:
    """A trainer and replicas, which all hold its latest version.

    Args:
        clients: Starts the processes.
        scratch: A directory for patches in transit.
        size: Bytes of the model.
        begin: Whether to start a trainer that has published a version.
    """

    def __init__(self, clients: Clients, scratch: Path, size: int, *, begin: bool = True) -> None:
        self.clients = clients
        self._options = {"bucket": BUCKET, "scratch": scratch, "size": size, "seed": next(_seeds)}
        self._workers = ExitStack()
        self.probe = clients.probe
        self.replicas: list[Worker] = []
        if begin:
            self.trainer = self.start("trainer")
            self.trainer.ask("begin")

    def start(self, role: str, **options: Any) -> Worker:
        """Start a process, which ends with this run; return it."""
        options = {"url": URL} | self._options | options
        return self._workers.enter_context(self.clients.start(_JOBS, role, **options))

    def add_replicas(self, total: int) -> None:
        """Start replicas until there are `total`."""
        while len(self.replicas) < total:
            replica = self.start("replica")
            replica.ask("begin")
            self.replicas.append(replica)

    def publish(self, line: Line) -> dict[str, Any]:
        """Take a step and publish it over a network, which stays set; return the results."""
        self.trainer.ask("step", share=SHARE)
        self.probe.set(line)
        published: dict[str, Any] = self.trainer.ask("publish")
        return published

    def check(self) -> None:
        """Compare all replicas with the trainer.

        Raises:
            AssertionError: One differs.
        """
        expected = self.trainer.ask("digest")
        if any(replica.ask("digest") != expected for replica in self.replicas):
            raise AssertionError("a replica differs from the trainer")

    def close(self) -> None:
        """End all processes."""
        self._workers.close()


@contextmanager
def fresh_run(work: Path, size: int, *, begin: bool = True) -> Iterator[Run]:
    """Yield a run with a new Hub; the arguments are those of `Run`."""
    with scratch_folder(work, size) as scratch, fresh_hub(work) as clients:
        run = Run(clients, scratch, size, begin=begin)
        try:
            yield run
        finally:
            run.close()


class Pair:
    """A trainer and one replica that transfer each step in both ways.

    Args:
        run: A run without replicas.
        numpy: Whether patches find changes with numpy instead of torch.
    """

    def __init__(self, run: Run, *, numpy: bool = False) -> None:
        self.run = run
        run.add_replicas(1)
        (self.replica,) = run.replicas
        self.nbytes = run.trainer.ask("begin_patches", numpy=numpy)
        self.replica.ask("begin_patches")
        self.step(UNSHAPED)  # a first step that does not count, to warm up

    def step(self, line: Line, version: str = "v3") -> Step:
        """Transfer one step over a network, with a patch of this version; return the costs."""
        run = self.run
        changed = run.trainer.ask("step", share=SHARE) * self.nbytes / 2
        run.probe.set(line)
        patch, patch_size = self._patch(version)
        published = run.trainer.ask("publish")
        synced = self.replica.ask("sync", to=published["snapshot"])
        run.probe.set(UNSHAPED)
        copy = run.trainer.ask("copy")
        run.check()
        if self.replica.ask("digest_patched") != run.trainer.ask("digest"):
            raise AssertionError("a patched replica differs from the trainer")
        return Step(
            ours=_way(published, synced),
            patch=patch,
            patch_size=patch_size,
            blocked=published["blocked"],
            copy=copy,
            changed=round(changed),
            published=published,
            synced=synced,
        )

    def followed(self, line: Line) -> tuple[float, float]:
        """Transfer a step to a replica that polls; return its time until applied, and its pause."""
        self.replica.ask("follow")
        published = self.run.publish(line)
        applied, pause = self.replica.ask("followed", snapshot=published["snapshot"])
        self.run.probe.set(UNSHAPED)
        self.replica.ask("stop")
        self.run.check()
        self._patch("v3")
        return applied - published["begin"], pause

    def _patch(self, version: str) -> tuple[Way, int]:
        """Send and apply a patch; return the costs and the size of its file."""
        sent = self.run.trainer.ask("send", version=version)
        return _way(sent, self.replica.ask("receive", name=sent["name"])), sent["size"]


def find_trips(work: Path, size: int) -> dict[str, float]:
    """Return the number of sequential round trips of each part, from a tiny model."""
    far = Line(name="far", latency=0.2)
    with fresh_run(work, size) as run:
        pair = Pair(run)
        note_progress("round trips")
        near_step, far_step = pair.step(UNSHAPED), pair.step(far)
    parts = {
        "publish": (near_step.ours.up, far_step.ours.up),
        "sync": (near_step.ours.down, far_step.ours.down),
        "patch up": (near_step.patch.up, far_step.patch.up),
        "patch down": (near_step.patch.down, far_step.patch.down),
    }
    return {
        name: round(max(0.0, slow.seconds - fast.seconds) / far.latency, 1)
        for name, (fast, slow) in parts.items()
    }


def _way(up: dict[str, Any], down: dict[str, Any]) -> Way:
    return Way(Spent.parse(up["spent"]), Spent.parse(down["spent"]), down["pause"])
