"""The states that the encodings are measured on: real ones, and others derived from them."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import casweights
from casweights.config import DEFAULT_CHUNK_SIZE
from casweights.events import Reporter
from casweights.format.codecs import encode, encode_difference
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


@dataclass(frozen=True, slots=True)
class Data:
    """Versions of a real model, see `training`.

    Attributes:
        family: A base and what was trained from it.
        fast: Consecutive RL steps at three times the family's rate.
    """

    family: list[Version]
    fast: list[Path]

    @classmethod
    def make(cls, root: Path) -> Data:
        """Train what is not there yet, which takes about ten minutes."""
        from tools.models import training  # with torch and transformers, which take seconds

        family = training.family(root / "family")
        return cls(family, training.rl_steps(root / "rl_3e-6", rate=3e-6))

    @property
    def base(self) -> Path:
        """What all of the family was trained from."""
        return self.family[0].path

    def chain(self, name: str) -> list[Path]:
        """The versions of the family whose names begin so, in order."""
        return [version.path for version in self.family if version.name.startswith(name)]

    @property
    def masters(self) -> tuple[Path, Path]:
        """The base and the last of the checkpoints in fp32."""
        return _master(self.base), _master(self.chain("tuned")[-1])


def _master(path: Path) -> Path:
    return path.with_name(f"{path.stem}_fp32.safetensors")


def dtype_of(state: State) -> DType:
    """The element type of a state's tensors."""
    return DTYPES[_CODES[next(iter(state.values())).itemsize]]


def nbytes(state: State) -> int:
    """The bytes of a state's tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def write_state(state: State, path: Path) -> None:
    """Write a safetensors file with flat tensors."""
    dtype = dtype_of(state)
    with path.open("wb") as file:
        file.write(build_header([(n, dtype, (len(t),)) for n, t in state.items()], {}))
        for name in sorted(state):
            file.write(state[name].data)


def chunks(*states: State, size: int = DEFAULT_CHUNK_SIZE) -> Iterator[tuple[memoryview, ...]]:
    """The chunks of equal states' tensors, as a store cuts them, side by side."""
    for name in states[0]:
        views = [state[name].view(np.uint8).data for state in states]
        for start in range(0, len(views[0]), size):
            yield tuple(view[start : start + size] for view in views)


def smallest(old: memoryview, chunk: memoryview, dtype: DType) -> int:
    """The bytes of a chunk in the encoding that takes least, wherever that leads."""
    found = encode_difference(chunk, old, dtype), encode(chunk, dtype, "auto")
    return min(len(encoded[1]) for encoded in found if encoded is not None)


def smallest_state(pair: tuple[State, State]) -> int:
    """The bytes of all chunks of a state that changed, each in the encoding that takes least."""
    dtype = dtype_of(pair[0])
    return sum(smallest(old, new, dtype) for old, new in chunks(*pair) if old != new)


# --- Versions in a store.


@dataclass(frozen=True, slots=True)
class Stored:
    """What one commit left in a directory.

    Attributes:
        frames: Bytes of its frames.
        everything: Bytes by which the directory grew.
    """

    frames: int
    everything: int


class Collect(Reporter):
    """Keeps what commits report.

    Attributes:
        stats: One entry a commit.
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
        versions: A name, a file, and the name of the version it was made from.
        directory: Where the store shall be.
        compression: How whole chunks are stored.
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
    """Versions for `commit_versions`, each made from the one before."""
    return [(f"v{n}", path, f"v{n - 1}" if n else None) for n, path in enumerate(paths)]


def disk_bytes(directory: Path) -> int:
    """The bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


# --- Pairs of states, and what others make of them.


@dataclass(frozen=True, slots=True)
class Pair:
    """A difference between two files, measured.

    Attributes:
        elements: Elements of a state.
        changed: Those that differ.
        memoryless: The entropy bound that knows nothing of the elements, in bytes.
        conditional: The one that knows tensor and exponent; 0 for what is not bf16.
        peers: The bytes of each peer; None: not installed.
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
    """Map over processes, one for each processor: for what is measured in bytes."""
    with ProcessPoolExecutor(default_workers(), get_context("spawn")) as pool:
        return list(pool.map(function, items))


def pinned(cores: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call in a new process that may use so many processors, for what is measured in seconds."""
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
    """The old state with so many of the changes, drawn at random, as a share of all elements."""
    rng = np.random.default_rng(0)
    changed = sum(int(np.count_nonzero(base[name] != new[name])) for name in base)
    kept = share * sum(len(tensor) for tensor in base.values()) / changed
    result = {}
    for name, old in base.items():
        keep = rng.random(len(old), np.float32) < kept
        result[name] = np.where(keep, new[name], old)
    return result


def between(base: State, new: State, share: float) -> State:
    """A state on the straight line between two ones in fp32, where so many elements changed.

    Args:
        base: The old state, in fp32.
        new: The new one.
        share: The share of bf16 elements that shall differ from the old state's.

    Returns:
        It, in bf16.
    """
    every = slice(None, None, 16)  # of the elements, to find the place on the line
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
