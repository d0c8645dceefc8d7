"""Whole stores: a family of models beside what others keep of it, and a thousand versions."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np

import casweights
from casweights.events import CheckoutStats, Reporter
from casweights.format.planes import encode_planes
from casweights.stores.local import LocalStore
from casweights.testing.counting import CountingStore
from tools.bench.encodings.data import (
    Collect,
    Data,
    chunks,
    commit_versions,
    disk_bytes,
    dtype_of,
    nbytes,
    smallest_state,
    spread,
    to_bf16,
    write_state,
)
from encodings_dedup import dedup
from entropy import Bounds, bounds
from harness import Result, compared, measured
from peers import bitx_encode, read_state, zipnn_encode
from programs import NotInstalledError, borg, restic

import casweights
from casweights.events import Reporter
from casweights.format.planes import encode_planes
from casweights.stores.local import LocalStore
from casweights.testing.counting import CountingStore
from tools.bench.encodings.dedup import dedup
from tools.bench.encodings.entropy import Bounds, bounds
from tools.bench.encodings.peers import bitx_encode, read_state, zipnn_encode
from tools.bench.encodings.programs import NotInstalledError, borg, restic
from tools.bench.harness import Result, compared, measured

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from casweights.ids import SnapshotId
    from casweights.results import CheckoutStats
    from tools.bench.encodings.peers import Array, State

OF_ZIPLLM, OF_ENTROPY, OF_WHOLE = 0.75, 1.15, 1.5
CHECKED = 20  # versions checked out of the thousand
FROM, SKIPPED = 100, (8, 64, 256)  # a version, and how many steps behind it differences end
_PENDING = 4


def family(data: Data, work: Path) -> list[Result]:
    """The family in one store, each version a difference from its parent."""
    versions = [(version.name, version.path, version.parent) for version in data.family]
    stored = commit_versions(versions, work / "family")
    ours = sum(one.everything for one in stored)
    files = {version.name: version.path for version in data.family}
    jobs = [(files[v.parent] if v.parent else None, v.path) for v in data.family]
    peers: list[tuple[str, int]] = spread(_zipllm, jobs)
    zipllm = sum(size for _, size in peers)
    raw = sum(path.stat().st_size for path in files.values())
    sizes = ", ".join(
        f"{version.name} {one.everything / 1e6:.2f} ({other / 1e6:.2f})"
        for version, one, (_, other) in zip(data.family, stored, peers, strict=True)
    )
    note = (
        f"reference: {peers[0][0]} for the base, BitX from its parent for every other version, "
        f"nothing else counted; {raw / 1e6:.1f} MB raw. MB a version (reference): {sizes}"
    )
    least: list[int] = spread(_smallest, jobs)
    alone = "reference: the same. Each chunk in the encoding that takes least, wherever that leads"
    results = [
        compared(
            "family, of ZipLLM-like",
            ours / 1e6,
            zipllm / 1e6,
            "MB",
            target=OF_ZIPLLM,
            note=note,
        ),
        compared("family, encodings alone", sum(least) / 1e6, zipllm / 1e6, "MB", note=alone),
    ]
    paths = list(files.values())
    others: dict[str, tuple[Callable[[], int], str]] = {
        "Xet-like": (
            lambda: dedup(paths),
            "see encodings/dedup.py; chunks alone are counted",
        ),
        "restic": (lambda: restic(paths, work)[-1], "its own repository, compression auto"),
        "borg": (lambda: borg(paths, work)[-1], "its own repository, zstd-3, default chunker"),
    }
    for name, (measure, how) in others.items():
        try:
            size = measure()
        except NotInstalledError:
            print(f"not installed: {name}")
            continue
        results.append(
            compared(f"family, of {name}", ours / 1e6, size / 1e6, "MB", note=f"reference: {how}")
        )
    return results


def _zipllm(job: tuple[Path | None, Path]) -> tuple[str, int]:
    parent, path = job
    new = read_state(path)
    if parent is not None:
        return "BitX", len(bitx_encode(read_state(parent), new))
    try:
        return "zipnn", len(zipnn_encode(new, new))
    except NotInstalledError:
        return "our own planes (zipnn is not installed)", _smallest(job)


def _smallest(job: tuple[Path | None, Path]) -> int:
    parent, path = job
    new = read_state(path)
    if parent is not None:
        return smallest_state((read_state(parent), new))
    width = dtype_of(new).plane_width
    return sum(len(encode_planes(chunk, width)) for (chunk,) in chunks(new))


# --- A thousand versions.


class Walk:
    """Part of the real model under AdamW-like steps, whose gradients are noise.

    Attributes:
        state: The version that was reached, in bf16.
    """

    _TENSORS = (
        "embeddings.word_embeddings.weight",
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.output.dense.weight",
    )
    _LONGEST = 3 << 20  # elements
    _MOMENTUM = 0.9
    _TRIALS, _TRIAL = 4, 10  # steps, before the rate is found anew

    def __init__(self, masters: Path, share: float) -> None:
        self._rng = np.random.Generator(np.random.SFC64(0))
        bits = read_state(masters)
        self._masters = {n: bits[n][: self._LONGEST].view(np.float32).copy() for n in self._TENSORS}
        self._moments = {n: self._noise(master) for n, master in self._masters.items()}
        self.state = self._rounded()
        self._scale = np.float32(np.sqrt(1 - self._MOMENTUM**2))
        for _ in range(self._TRIALS):  # more changes at first: many masters are halves of a step
            self._rate = np.float32(self._find_rate(share))
            for _ in range(self._TRIAL):
                self.step()

    def _noise(self, like: Array) -> Array:
        return self._rng.standard_normal(len(like), np.float32)

    def _rounded(self) -> State:
        return {name: to_bf16(m.view(np.uint32)) for name, m in self._masters.items()}

    def _find_rate(self, share: float) -> float:
        low, high = 1e-9, 1e-3
        for _ in range(20):
            rate = (low * high) ** 0.5
            changed = 0
            for name, master in self._masters.items():
                moved = master + np.float32(rate) * self._moments[name]
                changed += int(np.count_nonzero(to_bf16(moved.view(np.uint32)) != self.state[name]))
            low, high = (rate, high) if changed < share * self.elements else (low, rate)
        return low

    @property
    def elements(self) -> int:
        return sum(map(len, self._masters.values()))

    def step(self) -> None:
        for name, master in self._masters.items():
            moment = self._moments[name]
            moment *= np.float32(self._MOMENTUM)
            moment += self._scale * self._noise(master)
            master += self._rate * moment
        self.state = self._rounded()


@dataclass(frozen=True, slots=True)
class _Read:
    """What a checkout into an empty directory read.

    Attributes:
        frames: Bytes of frames.
        everything: All bytes, snapshots and indexes too.
        requests: Reads of the store.
    """

    frames: int
    everything: int
    requests: int


def _step(before: State, after: State) -> tuple[Bounds, int]:
    return bounds(before, after), smallest_state((before, after))


class _Fetched(Reporter):
    def __init__(self) -> None:
        self.nbytes = 0

    def checked_out(self, stats: CheckoutStats) -> None:
        self.nbytes = stats.fetched_bytes


def thousand(data: Data, work: Path, *, count: int = 1000, share: float = 0.01) -> list[Result]:
    """Many versions of a small model in a row, and how much reading any one of them takes."""
    work.mkdir()
    walk = Walk(data.masters[0], share)
    path, directory, out = work / "model.safetensors", work / "store", work / "out"
    collect = Collect()
    made: list[SnapshotId] = []
    found: list[Future[tuple[Bounds, int]]] = []
    skips: dict[int, Future[int]] = {}
    first, anchor = 0, walk.state
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        casweights.open(
            directory, create=True, reporter=collect, cache_size=2 * nbytes(walk.state)
        ) as store,
    ):
        for n in range(count):
            if n:
                before = walk.state
                walk.step()
                found.append(pool.submit(_step, before, walk.state))
                if n > _PENDING:
                    found[n - 1 - _PENDING].result()
            if n == FROM:
                anchor = walk.state
            if n - FROM in SKIPPED:
                skips[n - FROM] = pool.submit(smallest_state, (anchor, walk.state))
            write_state(walk.state, path)
            made.append(store.commit(path).id)
            first = first or disk_bytes(directory)
            if n % 100 == 99:
                print(f"  thousand versions: {n + 1} of {count}", end="\r", file=sys.stderr)
        everything = disk_bytes(directory) - first
        statistics = store.stats()
    longest = max(version.longest_chain for version in statistics.versions)
    stored = ", ".join(f"{number} frames {name}" for name, number in statistics.encodings.items())
    whole = _read(directory, made[0], out)
    step = max(1, count // CHECKED)
    places = sorted({*range(step - 1, count, step), count - 1})
    reads = {n: _read(directory, made[n], out) for n in places}
    if (out / path.name).read_bytes() != path.read_bytes():
        raise AssertionError("the last version did not come back")
    steps = [future.result() for future in found]
    entropy = sum(bound.conditional for bound, _ in steps)
    changed = sum(bound.changed for bound, _ in steps)
    frames = sum(stats.stored_bytes for stats in collect.stats[1:])
    most = max(places, key=lambda n: reads[n].frames)
    most_read = max(places, key=lambda n: reads[n].everything)
    note = (
        f"reference: the sum of the entropies of all steps; {count} versions of "
        f"{nbytes(walk.state) / 1e6:.1f} MB in {len(list(chunks(walk.state)))} chunks, "
        f"{changed / (count - 1) / walk.elements:.2%} changed a step; the first version, "
        f"{first / 1e6:.2f} MB, is not counted"
    )
    last = reads[count - 1]
    return [
        compared(
            f"{count} versions: all objects, of the entropy",
            everything / 1e6,
            entropy / 1e6,
            "MB",
            target=OF_ENTROPY,
            note=note,
        ),
        compared(
            f"{count} versions: frames, of the entropy",
            frames / 1e6,
            entropy / 1e6,
            "MB",
            note=f"with shortcuts and whole chunks; {stored}",
        ),
        compared(
            f"{count} versions: steps alone, of the entropy",
            sum(size for _, size in steps) / 1e6,
            entropy / 1e6,
            "MB",
            note="each version from the one before, wherever that leads: the code's own distance",
        ),
        compared(
            f"{count} versions: frames read, of a whole version's",
            reads[most].frames / 1e6,
            whole.frames / 1e6,
            "MB",
            target=OF_WHOLE,
            note=f"the most of {len(places)} versions in empty directories, version {most + 1}; "
            f"reference: the first version. The last one: {last.frames / 1e6:.2f} MB",
        ),
        compared(
            f"{count} versions: all bytes read, of a whole version's",
            reads[most_read].everything / 1e6,
            whole.everything / 1e6,
            "MB",
            target=OF_WHOLE,
            note=f"snapshots and packs' indexes too, version {most_read + 1}; the last one: "
            f"{last.everything / 1e6:.2f} MB in {last.requests} reads",
        ),
        measured(
            f"{count} versions: longest chain",
            longest,
            "frames",
            note=f"of any chunk of any version; {sum(s.packs for s in collect.stats)} packs",
        ),
        *(
            compared(
                f"{count} versions: one difference over {k} steps",
                skip.result() / 1e6,
                sum(size for _, size in steps[FROM : FROM + k]) / 1e6,
                "MB",
                note="reference: the steps, one by one; frames alone",
            )
            for k, skip in skips.items()
        ),
    ]


def _read(directory: Path, version: SnapshotId, out: Path) -> _Read:
    shutil.rmtree(out, ignore_errors=True)
    objects, fetched = CountingStore(LocalStore(directory)), _Fetched()
    with casweights.open(objects, reporter=fetched) as store:
        store.checkout(version, out)
    return _Read(fetched.nbytes, objects.read_bytes(""), len(objects.reads))
