"""Measures speeds of differences on a synthetic model: kernels, commits, loads and checkouts."""

from __future__ import annotations

import os
import shutil
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

import casweights
from casweights.config import DEFAULT_CHUNK_SIZE, MiB
from casweights.format.codecs import decode
from casweights.format.differences import encode_difference
from casweights.format.dtypes import DTYPES
from casweights.format.hashing import blake3_256
from casweights.kernels import sparse_encode
from casweights.kernels.kinds import ElementKind
from tools.bench.encodings.data import Collect, chunks, pinned
from tools.bench.encodings.synthetic import Synthetic
from tools.bench.harness import Clock, Result, measured, median, pair

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from casweights.repository import Repository
    from tools.bench.encodings.states import Array

BASE = "base.safetensors"
PERCENTS = (0.1, 1, 10)  # of elements changed
TARGETS_UP_TO = 1  # percent
OF_COMPARE = 2.0
ENCODE = DECODE = 1.2  # GB/s
BOTH = 2  # processors


@dataclass(frozen=True, slots=True)
class Limits:
    """Speeds of passes over the model, in GB/s.

    Attributes:
        copy: memcpy, counting the bytes copied.
        digest: BLAKE3 of chunks.
        compare: numpy's ``a != b`` of chunks, counting one side.
    """

    copy: float
    digest: float
    compare: float

    def together(self, *, copies: int, digests: int, compares: int = 0) -> float:
        """Return the speed of these numbers of passes, one after another."""
        seconds = copies / self.copy + digests / self.digest + compares / self.compare
        return 1 / seconds


def speeds(work: Path, *, size: int, rounds: int) -> list[Result]:
    """Return the rows on all speeds on one processor, and on those of a store on both."""
    work.mkdir()
    base = Synthetic(size)
    base.make()
    base.write(work / BASE)
    del base
    found: tuple[Limits, list[Result]] = pinned(1, _memory, work, size, rounds)
    limits, results = found
    for percent in PERCENTS:
        results += pinned(1, _store, work, size, percent, rounds, limits)
    results += pinned(BOTH, _store, work, size, 1, rounds, None)
    return results


# --- In memory.


def _memory(work: Path, size: int, rounds: int) -> tuple[Limits, list[Result]]:
    """Return the limits and the rows on kernels."""
    model = Synthetic(size)
    model.read(work / BASE)
    limits = _limits(model.flat, rounds)
    results = [
        measured("limit: memcpy", limits.copy, "GB/s", note="one processor, bytes copied"),
        measured("limit: BLAKE3", limits.digest, "GB/s", note="one processor, chunks"),
        measured("limit: numpy a != b", limits.compare, "GB/s", note="one processor, one side"),
    ]
    old = {name: tensor.copy() for name, tensor in model.state.items()}
    for percent in PERCENTS:
        for name, tensor in model.state.items():
            tensor[:] = old[name]
        share = model.step(percent / 100)
        kernels = _Kernels(list(chunks(old, model.state)))
        results += _kernel_rows(kernels, percent, share, rounds, limits)
    return limits, results


def _limits(flat: Array, rounds: int) -> Limits:
    parts = [flat[n : n + DEFAULT_CHUNK_SIZE // 2] for n in range(0, len(flat), 2 * MiB)]
    copy = flat.copy()
    others = [copy[n : n + DEFAULT_CHUNK_SIZE // 2] for n in range(0, len(copy), 2 * MiB)]

    def compare() -> None:
        for a, b in zip(parts, others, strict=True):
            np.not_equal(a, b)

    def digest() -> None:
        for part in parts:
            blake3(part.view(np.uint8).data).digest()

    functions: list[Callable[[], object]] = [lambda: np.copyto(copy, flat), digest, compare]
    found = [flat.nbytes / median(function, rounds) / 1e9 for function in functions]
    return Limits(*found)


class _Kernels:
    """Differences of a model's chunks in memory.

    Args:
        parts: Pairs of an old and a new chunk.
    """

    def __init__(self, parts: Sequence[tuple[memoryview, ...]]) -> None:
        self._parts = parts
        self._dtype = DTYPES["BF16"]
        self._arrays = [[np.frombuffer(part, np.uint16) for part in pair] for pair in parts]
        self._encoded = [encode_difference(new, old, self._dtype) for old, new in parts]
        self._outs = [bytearray(len(new)) for _, new in parts]
        self.nbytes = sum(len(new) for _, new in parts)

    def compare(self) -> None:
        """Compare old and new chunks with numpy, as the reference."""
        for old, new in self._arrays:
            old != new  # noqa: B015

    def sparse(self) -> None:
        """Encode the differences with `sparse`."""
        for old, new in self._parts:
            sparse_encode(old, new, ElementKind.BFLOAT_16)

    def encode(self) -> None:
        """Encode and hash each chunk, as a commit does."""
        for old, new in self._parts:
            encode_difference(new, old, self._dtype)
            blake3_256(new)

    def restore(self) -> None:
        """Restore the old chunks, for `apply` to change."""
        for out, (old, _) in zip(self._outs, self._parts, strict=True):
            out[:] = old

    def apply(self) -> None:
        """Decode and hash each chunk, as a checkout does."""
        for out, encoded in zip(self._outs, self._encoded, strict=True):
            assert encoded is not None
            decode(*encoded, memoryview(out))
            blake3_256(out)

    def check(self) -> None:
        """Check the result of `apply`.

        Raises:
            AssertionError: A chunk differs from the new one.
        """
        if any(out != new for out, (_, new) in zip(self._outs, self._parts, strict=True)):
            raise AssertionError("the differences did not reproduce the chunks")


def _kernel_rows(
    kernels: _Kernels, percent: float, share: float, rounds: int, limits: Limits
) -> list[Result]:
    kernel = pair(
        f"sparse kernel, {percent} %",
        kernels.sparse,
        kernels.compare,
        target=OF_COMPARE if percent <= TARGETS_UP_TO else None,
        rounds=rounds,
        note=f"reference: numpy's a != b; {share:.3%} changed",
    )
    encoding = kernels.nbytes / median(kernels.encode, rounds) / 1e9
    applying = kernels.nbytes / median(kernels.apply, rounds, kernels.restore) / 1e9
    kernels.check()
    limit = limits.together(copies=0, digests=1, compares=1)
    return [
        kernel,
        measured(
            f"compare, encode, BLAKE3, {percent} %",
            encoding,
            "GB/s",
            note=f"one processor, in memory. Limit, BLAKE3 and a != b: {_of(encoding, limit)}",
        ),
        measured(
            f"apply, BLAKE3, {percent} %",
            applying,
            "GB/s",
            note=f"one processor, in memory. Limit, BLAKE3: {_of(applying, limits.digest)}",
        ),
    ]


# --- Through a store.


def _store(
    work: Path, size: int, percent: float, rounds: int, limits: Limits | None
) -> list[Result]:
    """Return the rows on commits in three ways, and on reads in three ways."""
    model = Synthetic(size)
    model.read(work / BASE)
    path, clock, collect = work / "model.safetensors", Clock(), Collect()
    model.write(path)
    directories = {name: work / name for name in ("cached", "raw", "planes")}
    with ExitStack() as stack:
        stores = {
            name: stack.enter_context(_open(directory, model.flat.nbytes, collect))
            for name, directory in directories.items()
        }
        shares = _commit(stores, model, path, percent, rounds, clock)
    _read(work, directories["raw"], model.flat.nbytes, rounds, clock)
    if (work / "out" / path.name).read_bytes() != path.read_bytes():
        raise AssertionError("the last version was not reproduced")
    for directory in (*directories.values(), work / "out"):
        shutil.rmtree(directory)
    facts = (
        f"{statistics.mean(shares):.3%} changed, {collect.stats[-1].stored_bytes:,} bytes stored"
    )
    return [_result(name, percent, model.flat.nbytes, clock, limits, facts) for name in _ROWS]


def _open(directory: Path, nbytes: int, collect: Collect) -> Repository:
    """Open a new store; the one named ``cached`` keeps the last version in memory."""
    cache = nbytes if directory.name == "cached" else 0
    return casweights.open(directory, create=True, cache_size=cache, reporter=collect)


def _commit(
    stores: Mapping[str, Repository],
    model: Synthetic,
    path: Path,
    percent: float,
    rounds: int,
    clock: Clock,
) -> list[float]:
    """Time commits of steps to all stores alternately; return the shares that changed."""
    for name, store in stores.items():
        store.commit(path, compression="auto" if name == "planes" else "fast")
    shares = []
    for _ in range(rounds):
        shares.append(model.step(percent / 100))
        model.write(path)
        os.sync()  # so that earlier writes do not disturb the measurement
        for name, store in stores.items():
            clock.time(name, store.commit, path)
    return shares


def _read(work: Path, directory: Path, raw: int, rounds: int, clock: Clock) -> None:
    versions = [f"main~{n}" for n in range(rounds, -1, -1)]
    out = work / "out"
    with casweights.open(directory, cache_size=raw) as store:
        store.load(versions[0])
        for version in versions[1:]:
            clock.time("load", _load, store, version)
    with casweights.open(directory) as store:
        store.checkout(versions[0], out)
        for version in versions[1:]:
            os.sync()  # the disk comes to rest
            clock.time("over", store.checkout, version, out)
    for version in versions[1:]:
        shutil.rmtree(out)
        os.sync()  # the disk comes to rest
        with casweights.open(directory) as store:
            clock.time("empty", store.checkout, version, out)


def _load(store: Repository, version: str) -> None:
    store.load(version)  # the time includes the release of the tensors


# --- Rows.


@dataclass(frozen=True, slots=True)
class _Row:
    """An operation on a store.

    Attributes:
        what: Name in the report.
        target: Target in GB/s on one processor, up to `TARGETS_UP_TO`.
        passes: Number of copies, digests and comparisons of the whole model that it needs.
    """

    what: str
    target: float | None
    passes: tuple[int, int, int]


_ROWS = {
    "cached": _Row("commit, base in memory", ENCODE, (2, 1, 1)),
    "raw": _Row("commit, base in the store", ENCODE, (2, 2, 1)),
    "planes": _Row("commit, base in the store as planes", None, (2, 2, 1)),
    "load": _Row("load, base in memory", DECODE, (2, 1, 0)),
    "over": _Row("checkout over the previous version", DECODE, (3, 2, 0)),
    "empty": _Row("checkout into an empty directory", DECODE, (2, 1, 0)),
}


def _result(
    name: str, percent: float, size: int, clock: Clock, limits: Limits | None, facts: str
) -> Result:
    row = _ROWS[name]
    seconds, processor = clock.medians(name)
    speed = size / seconds / 1e9
    note = f"{facts}; by processor time {size / processor / 1e9:.2f} GB/s"
    if limits is None:
        return measured(f"{row.what}, {percent} %, both", speed, "GB/s", note=note)
    copies, digests, compares = row.passes
    limit = limits.together(copies=copies, digests=digests, compares=compares)
    passes = f"memcpy x {copies}, BLAKE3 x {digests}, a != b x {compares}"
    return measured(
        f"{row.what}, {percent} %",
        speed,
        "GB/s",
        target=row.target if percent <= TARGETS_UP_TO else None,
        at_least=True,
        note=f"{note}. Limit, {passes}: {_of(speed, limit)}",
    )


def _of(speed: float, limit: float) -> str:
    return f"{limit:.2f} GB/s, of which casweights reaches {speed / limit:.0%}"
