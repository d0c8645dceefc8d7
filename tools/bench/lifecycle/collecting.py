"""Measure collections of stores with many versions, of which nothing can go.

A collection that finds nothing new looks at listings only; the first one marks everything. The
stores in directories have synthetic versions, those in buckets real ones of a small model, and
`maintain` has run, as it does in long runs.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import casweights
from casweights.config import DEFAULT_GRACE, MiB
from tools.bench.harness import Result, compared, measured, paired
from tools.bench.hub.clients import fresh_hub, note_progress
from tools.bench.lifecycle.chunky import Chunky
from tools.bench.lifecycle.fresh import FreshSpent, run_fresh
from tools.bench.lifecycle.synthetic import add_synthetic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.system.buffers import Buffer
    from tools.bench.hub.probe import Spent

CHUNKS = 100
REQUESTS, TIME, MEMORY = 2, 2, 200  # times that of few versions, the same, and MiB
_URL = "hf://buckets/me/weights/run"
_DAY = 86400.0  # seconds


class _Side:
    """A directory with versions that are older than the grace time.

    Args:
        folder: The folder to work in; made here.
        count: Number of versions.
        chunks: Number of chunks of each.

    Attributes:
        frames: Number of frames of the store.
        marking: Costs of a collection that marked everything, also for what it would fold.
    """

    def __init__(self, folder: Path, count: int, chunks: int) -> None:
        folder.mkdir()
        self._store, file = folder / "store", folder / "model.safetensors"
        model = Chunky(chunks)
        model.write(file)
        with casweights.open(self._store, create=True) as repository:
            model.check(repository.commit(file))
            head = repository.database.refs.head("main")
            add_synthetic(repository.database, file, count - 1, head, self._put)
        with casweights.open(self._store) as repository:
            note_progress("maintain")
            repository.maintain()
            self.frames = sum(repository.stats().encodings.values())
        self._age()
        self.marking = self._fresh()
        with casweights.open(self._store) as repository:
            done = repository.gc()
        if done.pending:
            raise AssertionError(f"{done.pending[0].objects} objects were set aside")

    def _put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write an object without syncing it."""
        path = self._store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(parts))

    def _age(self) -> None:
        """Make everything older than the grace time."""
        then = time.time() - DEFAULT_GRACE.total_seconds() - _DAY
        for path in self._store.rglob("*"):
            if path.is_file():
                os.utime(path, (then, then))

    def idle(self) -> FreshSpent:
        """Collect with nothing to do, in a fresh process."""
        spent = self._fresh()
        if spent.read.keys() - {"casweights.json"}:
            raise AssertionError(f"a collection with nothing to do has read {spent.read}")
        return spent

    def _fresh(self) -> FreshSpent:
        return run_fresh("gc", str(self._store))


def row_gc(work: Path, count: int, few: int, rounds: int, chunks: int = CHUNKS) -> list[Result]:
    """Collect in stores of which nothing can go, with many versions and with few."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        many = _Side(Path(folder) / "many", count, chunks)
        reference = _Side(Path(folder) / "few", few, chunks)
        pairs = [(many.idle(), reference.idle()) for _ in range(rounds + 1)][1:]
    marking, few_marked = many.marking, reference.marking
    ours, theirs = _idle_requests(work, count), _idle_requests(work, few)
    return [
        compared(
            f"10 gc with nothing to do: requests, {count:,} versions to {few}",
            ours.total,
            theirs.total,
            "requests",
            target=REQUESTS,
            note=f"a fresh process on a bucket; {count:,} versions: {ours.routes}; {few}: "
            f"{theirs.routes}",
        ),
        paired(
            f"10 gc with nothing to do: time, {count:,} versions of {chunks} chunks to {few}",
            [(one.seconds, other.seconds) for one, other in pairs],
            "s",
            target=TIME,
            note="a fresh process in a directory, without imports",
        ),
        measured(
            f"10 gc that marks {count:,} versions of {chunks} chunks: memory",
            marking.memory / MiB,
            "MiB",
            target=MEMORY,
            note=f"a fresh process in a directory, above imports; {many.frames:,} frames, "
            f"{marking.seconds:.1f} s, {sum(marking.read.values()):,} bytes read; with {few} "
            f"versions {few_marked.memory / MiB:.0f} MiB and {few_marked.seconds:.2f} s",
        ),
    ]


def _idle_requests(work: Path, count: int) -> Spent:
    """Return the costs of a collection with nothing to do, in a bucket of some versions."""
    with fresh_hub(work) as clients:
        note_progress(f"a bucket with {count:,} versions")
        state = clients.work / "state.bin"
        clients.run("versions.build", versions=count, url=_URL, state=state)
        clients.run("collections.settle", url=_URL)
        return clients.spent("collections.idle", url=_URL)
