"""Time publishes with and without maintenance in the background, in pairs.

Usage: python -m tools.bench.lifecycle.upkeep OPTIONS, with the options as JSON. The process then
reads calls from standard input, see `workers`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import casweights
from casweights import Publisher
from tools.bench.harness import compared, paired
from tools.bench.histories import CONFIG, SHARE, small_model
from tools.bench.hub.clients import note_progress
from tools.bench.workers import Worker, serve

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.harness import Result

BEFORE, STEPS = 128, 256  # steps before the first pair: maintenance leaves the last 64 alone
_EVERY = 32  # steps from one round to the next, the default
MEDIAN, SUM = 1.05, 1.1  # of the times without maintenance
_PROGRESS = 64  # steps


class Trainer:
    """Publishes one step of a small model at a time.

    Args:
        url: The store.
        maintain: Versions from one round of maintenance to the next; 0 for none.
    """

    def __init__(self, url: str, maintain: int) -> None:
        self._model = small_model(0)
        self._model.make()
        self._state = self._model.tensors()
        casweights.open(url, create=True, config=CONFIG).close()
        self._publisher = Publisher(url, maintain=maintain)

    def step(self) -> float:
        """Take a step, and return the seconds until its version is durable."""
        self._model.step(SHARE)
        start = time.perf_counter()
        self._publisher.publish(self._state)
        self._publisher.wait()
        return time.perf_counter() - start


def row_upkeep(work: Path, steps: int = STEPS, before: int = BEFORE) -> list[Result]:
    """Let two trainers take steps in turns, of which one maintains its store."""
    with tempfile.TemporaryDirectory(dir=work) as folder, ExitStack() as stack:
        trainers = [stack.enter_context(_start(folder, every)) for every in (_EVERY, 0)]
        pairs: list[tuple[float, float]] = []
        for n in range(before + steps):
            turns = trainers[:: 1 if n % 2 else -1]
            found = {trainer: trainer.ask("step") for trainer in turns}
            pairs.append((found[trainers[0]], found[trainers[1]]))
            if n % _PROGRESS == 0:
                note_progress(f"maintain: step {n} of {before + steps}")
        objects = [_count_objects(f"{folder}/{every}") for every in (_EVERY, 0)]
    return _rows(pairs[before:], objects)


def _count_objects(folder: str) -> int:
    """Count the objects of a store, without those that lie aside until they are deleted."""
    aside = (f"{folder}/aside", f"{folder}/collections")
    return sum(len(files) for place, _, files in os.walk(folder) if not place.startswith(aside))


def _start(folder: str, every: int) -> Worker:
    options = json.dumps({"url": f"{folder}/{every}", "maintain": every})
    return Worker([sys.executable, "-m", __name__, options], os.environ)


def _rows(pairs: Sequence[tuple[float, float]], objects: Sequence[int]) -> list[Result]:
    note = (
        f"{len(pairs)} pairs of steps until they are durable, in a directory; reference: no "
        f"maintenance. At the end {objects[0]} objects, and {objects[1]} without maintenance"
    )
    ours, reference = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
    return [
        paired("9 publish with maintenance, median", pairs, "s", target=MEDIAN, note=note),
        compared("9 publish with maintenance, mean", ours, reference, "s", target=SUM, note=note),
    ]


def main(arguments: Sequence[str]) -> int:
    serve(Trainer(**json.loads(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
