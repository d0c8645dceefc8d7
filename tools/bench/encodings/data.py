"""The states with which the encodings are measured: real ones, and others derived from them."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import casweights
from casweights.config import DEFAULT_CHUNK_SIZE
from casweights.events import Reporter
from casweights.format.codecs import encode
from casweights.format.differences import encode_difference
from casweights.format.dtypes import DTYPES
from casweights.format.safetensors import build_header
from casweights.system.threads import default_workers
from tools.bench.encodings.entropy import bounds
from tools.bench.encodings.peers import sizes
from tools.bench.encodings.programs import NotInstalledError, zstd_patch
from tools.bench.encodings.states import read_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.config import Compression
    from casweights.format.dtypes import DType
    from casweights.results import CommitStats
    from tools.bench.encodings.states import Array, State
    from tools.models.training import Version

PATCH = "zstd --patch-from"
_CODES = {2: "BF16", 4: "F32"}


@dataclass(frozen=True)
class Data:
    """Versions of a real model, which are trained when they are first needed and missing.

    Attributes:
        root: The folder that keeps them.
    """

    root: Path

    @cached_property
    def family(self) -> list[Version]:
        """A base and the versions that were trained from it; making them takes some minutes."""
        from tools.models import training  # imports transformers, which takes seconds

        return training.family(self.root / "family")

    @cached_property
    def fast(self) -> list[Path]:
        """Consecutive RL steps at three times the family's rate."""
        from tools.models import training

        return training.rl_steps(self.root / "rl_3e-6", rate=3e-6)

    @property
    def base(self) -> Path:
        """The version from which all others of the family were trained."""
        return self.family[0].path

    def chain(self, name: str) -> list[Path]:
        """Return the versions of the family whose names begin with `name`, in order."""
        return [version.path for version in self.family if version.name.startswith(name)]

    @property
    def masters(self) -> tuple[Path, Path]:
        """The base and the last checkpoint, in fp32."""
        return _master(self.base), _master(self.chain("tuned")[-1])

    @property
    def masters_of_steps(self) -> tuple[Path, Path, Path]:
        """The base, and what it is after 20 and after 60 steps of one fine-tune, in fp32."""
        from tools.models import training

        ends = [
            training.fine_tune_checkpoints(self.root / f"first_{steps}", steps=steps, every=steps)
            for steps in (20, 60)
        ]
        return _master(ends[0][0]), _master(ends[0][1]), _master(ends[1][1])


def _master(path: Path) -> Path:
    return path.with_name(f"{path.stem}_fp32.safetensors")


def dtype_of(state: State) -> DType:
    """Return the element type of a state's tensors."""
    return DTYPES[_CODES[next(iter(state.values())).itemsize]]


def nbytes(state: State) -> int:
    """Return the number of bytes of a state's tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def write_state(state: State, path: Path) -> None:
    """Write a safetensors file with flat tensors."""
    dtype = dtype_of(state)
    with path.open("wb") as file:
        file.write(build_header([(n, dtype, (len(t),)) for n, t in state.items()], {}))
        for name in sorted(state):
            file.write(state[name].data)


def chunks(*states: State, size: int = DEFAULT_CHUNK_SIZE) -> Iterator[tuple[memoryview, ...]]:
    """Yield the chunks of states with the same tensors, cut as in a store: one of each state."""
    for name in states[0]:
        views = [state[name].view(np.uint8).data for state in states]
        for start in range(0, len(views[0]), size):
            yield tuple(view[start : start + size] for view in views)


def smallest(old: memoryview, chunk: memoryview, dtype: DType) -> int:
    """Return the bytes of a chunk in its smallest encoding, without a limit on chains."""
    found = encode_difference(chunk, old, dtype), encode(chunk, dtype, "auto")
    return min(len(encoded[1]) for encoded in found if encoded is not None)


def smallest_state(pair: tuple[State, State]) -> int:
    """Return the bytes of all changed chunks of a state, each in its smallest encoding."""
    dtype = dtype_of(pair[0])
    return sum(smallest(old, new, dtype) for old, new in chunks(*pair) if old != new)


# --- Versions in a store.


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes that one commit added to a store.

    Attributes:
        frames: Bytes of frames.
        everything: Bytes by which the directory grew.
    """

    frames: int
    everything: int


class Collect(Reporter):
    """Keeps the statistics of commits.

    Attributes:
        stats: The statistics of each commit.
    """

    def __init__(self) -> None:
        self.stats: list[CommitStats] = []

    def committed(self, stats: CommitStats) -> None:
        self.stats.append(stats)


def commit_versions(
    versions: Sequence[tuple[str, Path, str | None]],
    directory: Path,
    compression: Compression = "auto",
) -> list[Stored]:
    """Commit files to a new store in a directory, each to a branch of its own.

    Args:
        versions: Name, file, and name of the parent of each version.
        directory: Directory of the new store.
        compression: Compression of whole chunks.
    """
    collect = Collect()
    sizes = []
    with casweights.open(directory, create=True, reporter=collect) as store:
        sizes.append(disk_bytes(directory))
        for name, path, parent in versions:
            store.commit(path, branch=name, parent=parent, compression=compression)
            sizes.append(disk_bytes(directory))
    return [
        Stored(stats.stored_bytes, after - before)
        for stats, (before, after) in zip(collect.stats, pairwise(sizes), strict=True)
    ]


def chain_of(paths: Sequence[Path]) -> list[tuple[str, Path, str | None]]:
    """Return versions for `commit_versions`, each the parent of the next."""
    return [(f"v{n}", path, f"v{n - 1}" if n else None) for n, path in enumerate(paths)]


def disk_bytes(directory: Path) -> int:
    """Return the number of bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


# --- Pairs of states, and their sizes with other programs.


@dataclass(frozen=True, slots=True)
class Pair:
    """Measurements of a difference between two files.

    Attributes:
        elements: Number of elements of a state.
        changed: Number of elements that differ.
        memoryless: Entropy without knowledge of the elements, in bytes.
        conditional: Entropy given tensor and exponent, in bytes; 0 if the dtype is not bf16.
        peers: Bytes with each peer; None if it is not installed.
    """

    elements: int
    changed: int
    memoryless: float
    conditional: float
    peers: dict[str, int | None]


def compare_files(pair: tuple[Path, Path]) -> Pair:
    """Measure one pair of files."""
    base, new = (read_state(path) for path in pair)
    found: dict[str, int | None] = sizes(base, new)
    with tempfile.TemporaryDirectory(dir=pair[1].parent) as scratch:
        try:
            found[PATCH] = zstd_patch(*pair, Path(scratch))
        except NotInstalledError:
            found[PATCH] = None
    elements = sum(len(tensor) for tensor in base.values())
    if dtype_of(base).bits == 16:
        bound = bounds(base, new)
        return Pair(elements, bound.changed, bound.memoryless, bound.conditional, found)
    changed = sum(int(np.count_nonzero(base[name] != new[name])) for name in base)
    return Pair(elements, changed, 0, 0, found)


def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Map a function over items in one process per processor; for measurements of bytes."""
    with ProcessPoolExecutor(default_workers(), get_context("spawn")) as pool:
        return list(pool.map(function, items))


def pinned(cores: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process limited to `cores` processors; for measurements of time."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_pin, initargs=(cores,)) as pool:
        return pool.submit(function, *args).result()


def _pin(cores: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])


# --- Densities.


def to_bf16(bits: Array) -> Array:
    """Round bit patterns of fp32 to those of bf16, ties to even."""
    rounded: Array = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return rounded.astype(np.uint16)


def thin(base: State, new: State, share: float) -> State:
    """Return the old state with a random part of the changes, a given share of all elements."""
    rng = np.random.default_rng(0)
    changed = sum(int(np.count_nonzero(base[name] != new[name])) for name in base)
    kept = share * sum(len(tensor) for tensor in base.values()) / changed
    result = {}
    for name, old in base.items():
        keep = rng.random(len(old), np.float32) < kept
        result[name] = np.where(keep, new[name], old)
    return result


def between(base: State, new: State, share: float) -> State:
    """Return a state on the straight line between two states, at which a share of elements changed.

    Args:
        base: The old state, in fp32.
        new: The new state, in fp32.
        share: Share of elements that must differ from the old state, when rounded to bf16.

    Returns:
        The state, in bf16.
    """
    every = slice(None, None, 16)  # a sample of the elements is enough to find the place
    sample = {name: (base[name][every], new[name][every]) for name in base}
    count = sum(len(old) for old, _ in sample.values())
    low, high = 0.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        changed = sum(
            int(np.count_nonzero(to_bf16(old) != _on_line(old, new, middle)))
            for old, new in sample.values()
        )
        low, high = (middle, high) if changed < share * count else (low, middle)
    return {name: _on_line(base[name], new[name], low) for name in base}


def _on_line(old: Array, new: Array, place: float) -> Array:
    start, end = old.view(np.float32), new.view(np.float32)
    return to_bf16((start + np.float32(place) * (end - start)).view(np.uint32))
