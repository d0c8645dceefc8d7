"""Measure how the memory of a trainer and of a replica grows from an early step to a late one.

Usage: python -m tools.bench.lifecycle.growth ROLE OPTIONS, with the options as JSON. The process
then reads calls from standard input, see `workers`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import torch

import casweights
from casweights import Publisher, Subscriber
from casweights.config import MiB
from tools.bench import memory
from tools.bench.harness import measured
from tools.bench.hub.clients import note_progress
from tools.bench.lifecycle.chunky import ELEMENTS, Chunky
from tools.bench.workers import Worker, serve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.harness import Result

CHUNKS, FROM, GROWTH = 800, 200, 16  # GROWTH in MiB
_PROGRESS = 100  # steps


class Trainer:
    """Publishes one step at a time.

    Args:
        url: The store.
        chunks: Number of chunks of the model.
    """

    def __init__(self, url: str, chunks: int) -> None:
        self._model = Chunky(chunks)
        self._state = self._model.tensors()
        casweights.open(url, create=True).close()
        self._publisher = Publisher(url)

    def step(self) -> None:
        """Take a step, and wait until it is durable."""
        self._model.step()
        self._publisher.publish(self._state)
        version = self._publisher.wait()
        assert version
        self._model.check(version)

    def memory(self) -> Any:
        """Return the resident bytes of this process."""
        gc.collect()
        return memory.resident()


class Replica:
    """Follows the trainer one step at a time.

    Args:
        url: The store.
        chunks: Number of chunks of the model.
    """

    def __init__(self, url: str, chunks: int) -> None:
        self._live = {
            name: torch.zeros_like(tensor) for name, tensor in Chunky(chunks).tensors().items()
        }
        self._subscriber = Subscriber(url)

    def step(self) -> None:
        """Sync to the newest version."""
        self._subscriber.sync(self._live)

    def memory(self) -> Any:
        """Return the resident bytes of this process."""
        gc.collect()
        return memory.resident()


ROLES: dict[str, type[Trainer | Replica]] = {"trainer": Trainer, "replica": Replica}


def row_growth(work: Path, steps: int, *, chunks: int = CHUNKS, first: int = FROM) -> list[Result]:
    """Let both take `steps` steps; compare their memory after `first` of them and at the end."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        options = json.dumps({"url": f"{folder}/store", "chunks": chunks})
        with _start("trainer", options) as trainer:
            trainer.ask("step")
            with _start("replica", options) as replica:
                found = _watch({"trainer": trainer, "replica": replica}, steps, first)
    return [_growth(role, sizes, chunks) for role, sizes in found.items()]


def _start(role: str, options: str) -> Worker:
    return Worker([sys.executable, "-m", __name__, role, options], os.environ)


def _watch(workers: dict[str, Worker], steps: int, first: int) -> dict[str, dict[int, int]]:
    """Take the steps; return the memory of each after the first steps, later ones, and all."""
    found: dict[str, dict[int, int]] = {role: {} for role in workers}
    for n in range(1, steps + 1):
        for worker in workers.values():
            worker.ask("step")
        if n in (first, steps) or (n > first and n % _PROGRESS == 0):
            for role, worker in workers.items():
                found[role][n] = worker.ask("memory")
            shown = (f"{role} {sizes[n] / MiB:.1f} MiB" for role, sizes in found.items())
            note_progress(f"memory: step {n} of {steps}: {', '.join(shown)}")
    return found


def _growth(role: str, sizes: dict[int, int], chunks: int) -> Result:
    first, steps = min(sizes), max(sizes)
    growth = sizes[steps] - sizes[first]
    a_step = growth / (steps - first)
    shown = ", ".join(f"{size / MiB:.0f}" for size in sizes.values())
    return measured(
        f"8 growth of a {role}, steps {first} to {steps:,}",
        growth / MiB,
        "MiB",
        target=GROWTH,
        note=f"{chunks} chunks of {2 * ELEMENTS} bytes change at each step, in a directory; "
        f"{a_step / 1e6:.3f} MB a step, {a_step / chunks:.0f} bytes for each chunk of it. "
        f"MiB at first and after every {_PROGRESS} steps: {shown}",
    )


def main(arguments: Sequence[str]) -> int:
    role, options = arguments
    serve(ROLES[role](**json.loads(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
