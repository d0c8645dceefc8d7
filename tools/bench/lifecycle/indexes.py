"""Measure what fresh processes read and need in stores with many versions of many chunks.

The store has some real versions, many synthetic ones, and some real ones again. `maintain` runs
after the synthetic ones and at the end, as it does in long runs.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import casweights
from casweights.config import MiB
from tools.bench.harness import Result, measured, paired
from tools.bench.hub.clients import note_progress
from tools.bench.lifecycle.chunky import Chunky
from tools.bench.lifecycle.fresh import FreshSpent, run_fresh
from tools.bench.lifecycle.synthetic import add_synthetic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights.results import MaintainStats
    from casweights.system.buffers import Buffer

CHUNKS = 1000
READ, MEMORY, TIME = 16, 256, 1.5  # MiB, MiB, and times that of few versions


class _Side:
    """A directory with real versions, synthetic ones, and real ones again.

    Args:
        folder: The folder to work in; made here.
        synthetic: Number of synthetic versions.
        real: Number of real versions, half of them before the synthetic ones.
        chunks: Number of chunks of each version.

    Attributes:
        maintained: What `maintain` did.
    """

    def __init__(self, folder: Path, synthetic: int, real: int, chunks: int) -> None:
        folder.mkdir()
        self._store, self._out = folder / "store", folder / "out"
        self._file = folder / "model.safetensors"
        self._model = Chunky(chunks)
        self._branches = 0
        with casweights.open(self._store, create=True) as repository:
            for _ in range(real // 2):
                self._commit(repository)
            self._first = str(next(iter(repository.log())).id)
            self._first_bytes = self._file.read_bytes()
            head = repository.database.refs.head("main")
            add_synthetic(repository.database, self._file, synthetic, head, self._put)
        with casweights.open(self._store) as repository:
            note_progress("maintain")
            self.maintained: MaintainStats = repository.maintain()
        with casweights.open(self._store) as repository:
            for _ in range(real - real // 2):
                self._commit(repository)
            repository.maintain()

    def _commit(self, repository: casweights.Repository) -> None:
        self._step()
        self._model.check(repository.commit(self._file))

    def _put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write an object without syncing it."""
        path = self._store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(parts))

    def commit(self) -> FreshSpent:
        """Commit the next version in a fresh process."""
        self._step()
        return self._fresh("commit", self._file, "main")

    def branch(self) -> FreshSpent:
        """Commit the next version to a new branch in a fresh process."""
        self._step()
        self._branches += 1
        return self._fresh("commit", self._file, f"branch_{self._branches}")

    def checkout(self) -> FreshSpent:
        """Check out the newest version of the branch in a fresh process, and compare the files."""
        return self._check_out("main", self._file.read_bytes())

    def old(self) -> FreshSpent:
        """Check out an old version in a fresh process, and compare the files."""
        return self._check_out(self._first, self._first_bytes)

    def _check_out(self, version: str, expected: bytes) -> FreshSpent:
        shutil.rmtree(self._out, ignore_errors=True)
        spent = self._fresh("checkout", self._out, version)
        if (self._out / self._file.name).read_bytes() != expected:
            raise AssertionError("the version did not come back")
        return spent

    def _step(self) -> None:
        self._model.step()
        self._model.write(self._file)

    def _fresh(self, verb: str, path: Path, version: str) -> FreshSpent:
        return run_fresh(verb, str(self._store), str(path), version)


_WHAT: dict[str, tuple[str, Callable[[_Side], FreshSpent]]] = {
    "commit": ("commit", _Side.commit),
    "checkout": ("checkout", _Side.checkout),
    "old": ("checkout of an old version", _Side.old),
    "branch": ("first commit of a branch", _Side.branch),
}


def row_indexes(
    work: Path, count: int, few: int, rounds: int, chunks: int = CHUNKS
) -> list[Result]:
    """Commit and check out with many versions and with few, in pairs."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        many = _Side(Path(folder) / "many", count - few, few, chunks)
        reference = _Side(Path(folder) / "few", 0, few, chunks)
        done = many.maintained
        results = [
            measured(
                f"3 {count:,} versions of {chunks:,} chunks: segments",
                done.segment_bytes / MiB,
                "MiB",
                note=f"written by the first `maintain`; {done.segments} are left. It left "
                f"{done.packs} of {done.old_packs:,} packs and copied {done.copied_bytes:,} bytes",
            )
        ]
        for what, run in _WHAT.values():
            pairs = [(run(many), run(reference)) for _ in range(rounds)]
            results += _rows(f"3 {count:,} versions of {chunks:,} chunks, {what}", pairs, few)
    return results


def _rows(what: str, pairs: Sequence[tuple[FreshSpent, FreshSpent]], few: int) -> list[Result]:
    ours, reference = pairs[0]
    folders = ", ".join(f"{nbytes:,} of {name}" for name, nbytes in sorted(ours.read.items()))
    note = (
        f"a fresh process; all but {few} versions have synthetic IDs. Bytes of all objects that it "
        f"read, with frames: {folders}; with {few} versions "
        f"{sum(reference.read.values()):,} and {reference.memory / MiB:.0f} MiB"
    )
    return [
        measured(f"{what}: read", sum(ours.read.values()) / MiB, "MiB", target=READ, note=note),
        measured(f"{what}: memory", ours.memory / MiB, "MiB", target=MEMORY, note=note),
        paired(
            f"{what}: time",
            [(one.seconds, other.seconds) for one, other in pairs],
            "s",
            target=TIME,
            note=f"a fresh process, without imports; reference: {few} versions",
        ),
    ]
