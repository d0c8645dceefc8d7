"""Measure what grows with the number of versions, and what a step costs.

Prints tables and one line of JSON.
Usage: tools/bench/run lifecycle [--versions N] [--only ROW...] [--data DIR]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench.harness import conclude, head, table
from tools.bench.histories import publish_run
from tools.bench.hub.clients import note_progress
from tools.bench.lifecycle import (
    collecting,
    folding,
    growth,
    indexes,
    mending,
    objects,
    requests,
    step_bytes,
    times,
    upkeep,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.bench.harness import Result
    from tools.bench.histories import Run

TITLE = "casweights: many versions"
ROWS = {
    "times": "times in a directory, relative to few versions",
    "requests": "requests of fresh processes to a bucket, relative to few versions",
    "indexes": "bytes read, memory and time of fresh processes, with many chunks",
    "objects": "objects of a run",
    "steps": "bytes of a step of reinforcement learning for each changed element",
    "small": "bytes of a step that changes three of very many small tensors",
    "trips": "round trips of a publish",
    "memory": "growth of a trainer and of a replica",
    "repair": "a run with one chunk in a hundred damaged, repaired from its newest version",
    "fold": "bytes of a run of which few steps stay, relative to these alone",
    "gc": "collections with nothing to do, and the memory of one that marks everything",
    "upkeep": "publishes with maintenance in the background, relative to none",
}
_FEW = 10


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tools/bench/run lifecycle", description=__doc__)
    rows = "; ".join(f"{name}: {what}" for name, what in ROWS.items())
    made.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=rows
    )
    made.add_argument(
        "--versions",
        type=int,
        default=1000,
        help="of the first four rows and gc; 10,000 takes long",
    )
    made.add_argument(
        "--data",
        type=Path,
        default=None,
        help="folder with real steps, as for `tools/bench/run encodings`; missing ones are made in "
        "a few minutes. Without it, only a stand-in is measured",
    )
    made.add_argument("--rounds", type=int, default=9, help="pairs; a third of fresh processes")
    made.add_argument(
        "--chunks", type=int, default=collecting.CHUNKS, help="of a version, in the row gc"
    )
    made.add_argument("--steps", type=int, default=2000, help="steps of the row on memory")
    made.add_argument("--dir", type=Path, default=None, help="folder to work in (needs space)")
    made.add_argument(
        "--smoke",
        action="store_true",
        help="run everything with tiny numbers; the figures mean nothing",
    )
    return made


class _Bench:
    """Makes the rows.

    Args:
        options: Options of the command.
        work: A folder to work in.
    """

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self._options, self._work = options, work
        self._count, self._rounds = options.versions, options.rounds
        self._fresh_rounds = -(-options.rounds // 3)
        self._small = {"chunks": 20} if options.smoke else {}
        self.makers: dict[str, Callable[[], list[Result]]] = {
            "times": self._times,
            "requests": lambda: requests.row_requests(work, self._count, _FEW),
            "indexes": self._indexes,
            "objects": lambda: objects.row_objects(self._many.store, self._count),
            "steps": self._steps,
            "small": lambda: step_bytes.row_small_tensors(
                100 if options.smoke else step_bytes.SMALL
            ),
            "trips": lambda: requests.row_trips(work, self._fresh_rounds),
            "memory": self._memory,
            "repair": lambda: mending.row_repair(work, **self._small),
            "fold": lambda: folding.row_fold(
                work, self._count, 1000 if options.smoke else folding.ELEMENTS
            ),
            "gc": self._gc,
            "upkeep": self._upkeep,
        }

    @cached_property
    def _many(self) -> Run:
        note_progress(f"a run of {self._count:,} steps")
        return publish_run(self._count)

    def _times(self) -> list[Result]:
        few = publish_run(_FEW)
        return times.row_times(self._many, few, self._count, self._work, self._rounds)

    def _indexes(self) -> list[Result]:
        return indexes.row_indexes(self._work, self._count, _FEW, self._fresh_rounds, **self._small)

    def _steps(self) -> list[Result]:
        real = step_bytes.real_steps(self._options.data) if self._options.data else []
        steps = 1 if self._options.smoke else step_bytes.STEPS
        return [*real, *step_bytes.stand_in_steps(self._work, steps)]

    def _memory(self) -> list[Result]:
        first = {"first": 2} if self._options.smoke else {}
        return growth.row_growth(self._work, self._options.steps, **self._small, **first)

    def _gc(self) -> list[Result]:
        small = {"chunks": 20} if self._options.smoke else {"chunks": self._options.chunks}
        return collecting.row_gc(self._work, self._count, _FEW, self._fresh_rounds, **small)

    def _upkeep(self) -> list[Result]:
        few = {"steps": 2, "before": 1} if self._options.smoke else {}
        return upkeep.row_upkeep(self._work, **few)


def _parse() -> argparse.Namespace:
    made = parser()
    options = made.parse_args()
    if options.versions <= _FEW:
        made.error(f"--versions must be more than {_FEW}, got {options.versions}")
    if options.steps <= growth.FROM:
        made.error(f"--steps must be more than {growth.FROM}, got {options.steps}")
    if options.smoke:
        options.versions, options.rounds, options.steps = 12, 1, 4
    return options


def main() -> int:
    options = _parse()
    facts: dict[str, object] = {
        "versions": f"{options.versions:,}, relative to {_FEW}",
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load": f"{os.getloadavg()[0]:.1f} before it began",
    }
    head(TITLE, facts)
    results = []
    with tempfile.TemporaryDirectory(dir=options.dir) as work:
        bench = _Bench(options, Path(work))
        for name in [name for name in ROWS if name in options.only]:
            start = time.perf_counter()
            found = bench.makers[name]()
            print(f"{name}: {ROWS[name]} ({time.perf_counter() - start:.0f} s)\n")
            table(found)
            results += found
    facts["load"] = f"{facts['load']}, {os.getloadavg()[0]:.1f} at the end"
    missed = conclude(TITLE, facts, results)
    return 1 if missed and not options.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
