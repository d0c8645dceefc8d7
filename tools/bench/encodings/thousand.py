"""Measures a thousand versions in one store, each made from the previous one."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from typing import TYPE_CHECKING

import casweights
from casweights.events import Reporter
from casweights.stores.local import LocalStore
from casweights.testing.counting import CountingStore
from tools.bench.encodings.data import (
    Collect,
    Data,
    chunks,
    disk_bytes,
    nbytes,
    smallest_state,
    write_state,
)
from tools.bench.encodings.entropy import Bounds, bounds
from tools.bench.encodings.walk import Walk
from tools.bench.harness import Result, compared, measured

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from casweights.ids import SnapshotId
    from casweights.results import CheckoutStats, CommitStats, StoreStats
    from tools.bench.encodings.states import State

OF_ENTROPY, OF_WHOLE = 1.15, 1.5
CHECKED = 20  # number of versions to check out
FROM, SKIPPED = 100, (8, 64, 256)  # a version, and the lengths of differences from it, in steps
_PENDING = 4  # steps that may wait to be measured, each with two states in memory
_FILE = "model.safetensors"
_PROGRESS = 100  # versions between two lines of progress


def thousand(data: Data, work: Path, *, count: int = 1000, share: float = 0.01) -> list[Result]:
    """Return the rows on many consecutive versions of a small model, and on reading them."""
    work.mkdir()
    walk = Walk(data.masters[0], share)
    history = _commit(walk, work, count)
    first = _read(work, history.versions[0])
    reads = _read_some(work, history.versions)
    return [
        *_stored(history, walk),
        *_read_back(reads, first, count),
        _longest_chain(history),
        *_skips(history),
    ]


# --- Writing.


@dataclass(frozen=True)
class _History:
    """Versions in a store.

    Attributes:
        versions: The IDs of the versions, in order.
        commits: Statistics of each commit.
        first: Bytes of the store after the first version.
        grown: Bytes that the other versions added.
        stats: Statistics of the store at the end.
        steps: Entropies of each step, and its bytes with the smallest encoding of each chunk.
        skips: Bytes of one difference over several steps, by their number.
    """

    versions: list[SnapshotId]
    commits: list[CommitStats]
    first: int
    grown: int
    stats: StoreStats
    steps: list[tuple[Bounds, int]]
    skips: dict[int, int]

    @cached_property
    def entropy(self) -> float:
        """Sum of the conditional entropies of all steps, in bytes."""
        return sum(bound.conditional for bound, _ in self.steps)

    @property
    def changed(self) -> int:
        """Number of elements that changed, in all steps together."""
        return sum(bound.changed for bound, _ in self.steps)

    @property
    def frames(self) -> int:
        """Number of bytes of all frames after the first version."""
        return sum(commit.stored_bytes for commit in self.commits[1:])


class _Differences:
    """Measures differences in another process while the next versions are made.

    Args:
        pool: A pool of one process.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._before: State = {}
        self._anchor: State = {}
        self._steps: list[Future[tuple[Bounds, int]]] = []
        self._skips: dict[int, Future[int]] = {}

    def add(self, n: int, state: State) -> None:
        """Measure version `n` against the previous one, and some versions against `FROM`."""
        if n:
            self._steps.append(self._pool.submit(_step, self._before, state))
            if len(self._steps) > _PENDING:
                self._steps[-1 - _PENDING].result()
        if n == FROM:
            self._anchor = state
        if n - FROM in SKIPPED:
            self._skips[n - FROM] = self._pool.submit(smallest_state, (self._anchor, state))
        self._before = state

    def steps(self) -> list[tuple[Bounds, int]]:
        """Wait for the measurements of all steps; return them."""
        return [future.result() for future in self._steps]

    def skips(self) -> dict[int, int]:
        """Wait for the differences over several steps; return their bytes by number of steps."""
        return {k: future.result() for k, future in self._skips.items()}


def _step(before: State, after: State) -> tuple[Bounds, int]:
    return bounds(before, after), smallest_state((before, after))


def _commit(walk: Walk, work: Path, count: int) -> _History:
    """Commit consecutive versions to a new store."""
    path, directory, collect = work / _FILE, work / "store", Collect()
    versions: list[SnapshotId] = []
    first, cache = 0, 2 * nbytes(walk.state)
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        casweights.open(directory, create=True, reporter=collect, cache_size=cache) as store,
    ):
        differences = _Differences(pool)
        for n in range(count):
            if n:
                walk.step()
            differences.add(n, walk.state)
            write_state(walk.state, path)
            versions.append(store.commit(path).id)
            first = first or disk_bytes(directory)
            if n % _PROGRESS == _PROGRESS - 1:
                print(f"  thousand versions: {n + 1} of {count}", end="\r", file=sys.stderr)
        return _History(
            versions=versions,
            commits=collect.stats,
            first=first,
            grown=disk_bytes(directory) - first,
            stats=store.stats(),
            steps=differences.steps(),
            skips=differences.skips(),
        )


# --- Reading.


@dataclass(frozen=True, slots=True)
class _Read:
    """The reads of a checkout to an empty directory.

    Attributes:
        frames: Bytes of frames.
        everything: Bytes of all objects, with snapshots and indexes.
        requests: Number of reads of the store.
    """

    frames: int
    everything: int
    requests: int


class _Fetched(Reporter):
    def __init__(self) -> None:
        self.nbytes = 0

    def checked_out(self, stats: CheckoutStats) -> None:
        self.nbytes = stats.fetched_bytes


def _read(work: Path, version: SnapshotId) -> _Read:
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    objects, fetched = CountingStore(LocalStore(work / "store")), _Fetched()
    with casweights.open(objects, reporter=fetched) as store:
        store.checkout(version, out)
    return _Read(fetched.nbytes, objects.read_bytes(""), len(objects.reads))


def _read_some(work: Path, versions: list[SnapshotId]) -> dict[int, _Read]:
    """Check out some versions; the last version comes last, and its file is compared."""
    step = max(1, len(versions) // CHECKED)
    numbers = sorted({*range(step - 1, len(versions), step), len(versions) - 1})
    reads = {n: _read(work, versions[n]) for n in numbers}
    if (work / "out" / _FILE).read_bytes() != (work / _FILE).read_bytes():
        raise AssertionError("the last version was not reproduced")
    return reads


# --- Rows.


def _stored(history: _History, walk: Walk) -> list[Result]:
    """Return the rows on the bytes of the versions after the first."""
    count = len(history.versions)
    encodings = ", ".join(f"{n} frames {name}" for name, n in history.stats.encodings.items())
    rows = (
        ("all objects", history.grown, OF_ENTROPY, _model_note(history, walk)),
        ("frames", history.frames, None, f"with shortcuts and whole chunks; {encodings}"),
        (
            "steps alone",
            sum(size for _, size in history.steps),
            None,
            "each version as a difference from the previous one, without a limit on chains",
        ),
    )
    return [
        compared(
            f"{count} versions: {what}, against the entropy",
            size / 1e6,
            history.entropy / 1e6,
            "MB",
            target=target,
            note=note,
        )
        for what, size, target, note in rows
    ]


def _model_note(history: _History, walk: Walk) -> str:
    count = len(history.versions)
    return (
        f"reference: the sum of the entropies of all steps; {count} versions of "
        f"{nbytes(walk.state) / 1e6:.1f} MB in {len(list(chunks(walk.state)))} chunks, "
        f"{history.changed / (count - 1) / walk.elements:.2%} changed per step; the first version, "
        f"{history.first / 1e6:.2f} MB, is not counted"
    )


def _read_back(reads: dict[int, _Read], first: _Read, count: int) -> list[Result]:
    """Return the rows on the versions that need the most bytes to read."""
    frames = max(reads, key=lambda n: reads[n].frames)
    everything = max(reads, key=lambda n: reads[n].everything)
    last = reads[count - 1]
    return [
        compared(
            f"{count} versions: frames read, against a whole version's",
            reads[frames].frames / 1e6,
            first.frames / 1e6,
            "MB",
            target=OF_WHOLE,
            note=f"the most of {len(reads)} checkouts to empty directories, version {frames + 1}; "
            f"reference: the first version. The last one: {last.frames / 1e6:.2f} MB",
        ),
        compared(
            f"{count} versions: all bytes read, against a whole version's",
            reads[everything].everything / 1e6,
            first.everything / 1e6,
            "MB",
            target=OF_WHOLE,
            note=f"with snapshots and packs' indexes, version {everything + 1}; the last one: "
            f"{last.everything / 1e6:.2f} MB in {last.requests} reads",
        ),
    ]


def _longest_chain(history: _History) -> Result:
    return measured(
        f"{len(history.versions)} versions: longest chain",
        max(version.longest_chain for version in history.stats.versions),
        "frames",
        note=f"of any chunk of any version; {sum(c.packs for c in history.commits)} packs",
    )


def _skips(history: _History) -> list[Result]:
    """Return the rows on one difference over several steps, compared with the single steps."""
    return [
        compared(
            f"{len(history.versions)} versions: one difference over {k} steps",
            skip / 1e6,
            sum(size for _, size in history.steps[FROM : FROM + k]) / 1e6,
            "MB",
            note="reference: the single steps; frames alone",
        )
        for k, skip in history.skips.items()
    ]
