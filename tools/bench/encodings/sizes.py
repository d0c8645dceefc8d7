"""Measures the bytes of RL steps and of differences of every density, compared with peers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from casweights.format.elements import kind_of
from casweights.format.planes import encode_planes
from casweights.kernels import dense_encode, sparse_encode
from tools.bench.encodings.data import (
    Data,
    Pair,
    Stored,
    between,
    chain_of,
    chunks,
    commit_versions,
    compare_files,
    dtype_of,
    smallest,
    smallest_state,
    spread,
    thin,
    write_state,
)
from tools.bench.encodings.programs import NotInstalledError
from tools.bench.encodings.states import read_state
from tools.bench.harness import Result, compared, measured

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.encodings.states import State

DENSITIES = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60)  # percent
BUSY = 60  # percent
SKIPPED = (2, 5, 8, 10)  # steps
CHOSEN = "chosen"
# Learning rate, and the target for frames in bytes per changed element.
RATES = (("1e-6", 1.0), ("3e-6", 0.92))
OF_BOUND, EVERYTHING = 1.10, 1.2
# TRL's patches: name of the peer, name in the report, and the target as a share of its bytes.
_PATCHES = (("trl_v3", "of uint16 gaps + bf16", 1 / 4), ("trl_v1", "of int32 + bf16", 1 / 6))
_UNIT = "B/change"


def rl_steps(data: Data, work: Path) -> list[Result]:
    """Return the rows on consecutive RL steps at two rates, committed one after another."""
    results = []
    for (rate, target), files in zip(RATES, (data.chain("rl"), data.fast), strict=True):
        pairs: list[Pair] = spread(compare_files, list(pairwise(files)))
        _, *stored = commit_versions(chain_of(files), work / f"rl-{rate}")
        results += _rows(_Steps(f"lr {rate}", pairs, stored), target)
        results += _skips(f"lr {rate}", files)
    return results


def _skips(what: str, files: Sequence[Path]) -> list[Result]:
    """Return the rows on differences over several steps, compared with the single steps."""
    steps: list[int] = spread(_between, list(pairwise(files)))
    skipped: list[int] = spread(_between, [(files[0], files[k]) for k in SKIPPED])
    note = "reference: the steps, one by one; frames alone"
    return [
        compared(f"{what}: over {k} steps", size / 1e3, sum(steps[:k]) / 1e3, "kB", note=note)
        for k, size in zip(SKIPPED, skipped, strict=True)
    ]


def _between(pair: tuple[Path, Path]) -> int:
    return smallest_state((read_state(pair[0]), read_state(pair[1])))


@dataclass(frozen=True)
class _Steps:
    """Consecutive steps, committed and measured.

    Attributes:
        what: Name in the report.
        pairs: Measurements of each step, with the bytes of peers.
        stored: Bytes that each commit added to the store.
    """

    what: str
    pairs: Sequence[Pair]
    stored: Sequence[Stored]

    @cached_property
    def changed(self) -> int:
        """Number of elements that changed."""
        return sum(pair.changed for pair in self.pairs)

    @cached_property
    def frames(self) -> int:
        """Number of bytes of frames."""
        return sum(step.frames for step in self.stored)

    @cached_property
    def everything(self) -> int:
        """Number of bytes of all objects."""
        return sum(step.everything for step in self.stored)

    @cached_property
    def bound(self) -> float:
        """Entropy given tensor and exponent, in bytes."""
        return sum(pair.conditional for pair in self.pairs)

    def peer(self, name: str) -> int:
        """Return the number of bytes that a peer needs.

        Raises:
            NotInstalledError: It is not installed.
        """
        total = 0
        for pair in self.pairs:
            size = pair.peers[name]
            if size is None:
                raise NotInstalledError(name)
            total += size
        return total

    def compare(
        self, to: str, reference: float, *, note: str, target: float | None = None
    ) -> Result:
        """Return a row that compares frames with other bytes, both per changed element."""
        return compared(
            f"{self.what}: {to}",
            self.frames / self.changed,
            reference / self.changed,
            _UNIT,
            target=target,
            note=note,
        )


def _rows(steps: _Steps, target: float) -> list[Result]:
    return [
        _frames(steps, target),
        steps.compare(
            "frames, against the entropy",
            steps.bound,
            target=OF_BOUND,
            note="reference: the entropy given tensor and exponent, without its parameters",
        ),
        _everything(steps),
        *(_patches(steps, *patch) for patch in _PATCHES),
        *_others(steps),
    ]


def _frames(steps: _Steps, target: float) -> Result:
    each = [
        step.frames / pair.changed for step, pair in zip(steps.stored, steps.pairs, strict=True)
    ]
    share = steps.changed / sum(pair.elements for pair in steps.pairs)
    memoryless = sum(pair.memoryless for pair in steps.pairs)
    return measured(
        f"{steps.what}: frames",
        steps.frames / steps.changed,
        _UNIT,
        target=target,
        note=f"{len(steps.pairs)} steps, {share:.2%} of the elements each; {min(each):.3f} to "
        f"{max(each):.3f}. Limit: {steps.bound / steps.changed:.3f}, the entropy of positions "
        f"and changes given tensor and exponent, exceeded by {steps.frames / steps.bound - 1:.1%}. "
        f"Not given these, it would be {memoryless / steps.changed:.3f}",
    )


def _everything(steps: _Steps) -> Result:
    count = len(steps.pairs)
    return measured(
        f"{steps.what}: all objects",
        steps.everything / steps.changed,
        _UNIT,
        target=EVERYTHING,
        note=f"packs with indexes, snapshot, branch: {steps.everything / count:,.0f} bytes per "
        f"commit; {(steps.everything - steps.frames) / count:,.0f} of them are not frames. Limit: "
        f"frames at {steps.bound / steps.changed:.3f} and a digest of 32 bytes for each new chunk",
    )


def _patches(steps: _Steps, name: str, to: str, target: float) -> Result:
    size = steps.peer(name)
    note = f"reference: {name}; with all objects {steps.everything / size:.3f}"
    return steps.compare(to, size, target=target, note=note)


def _others(steps: _Steps) -> list[Result]:
    rows, missing = [], []
    patches = {name for name, *_ in _PATCHES}
    for name in (name for name in steps.pairs[0].peers if name not in patches):
        try:
            size = steps.peer(name)
        except NotInstalledError:
            missing.append(name)
            continue
        note = "reference: the bytes of that peer, in the leanest container"
        rows.append(steps.compare(f"frames, against {name}", size, note=note))
    if missing:
        print(f"not installed: {', '.join(missing)}")
    return rows


def densities(data: Data, work: Path) -> list[Result]:
    """Return the rows on differences of every density, derived from real ones."""
    work.mkdir()
    jobs = [_write_pair(data, percent, work) for percent in DENSITIES]
    pairs: list[Pair] = spread(compare_files, jobs)
    alone: list[dict[str, int]] = spread(_own, jobs)
    found = []
    for percent, paths, pair, ours in zip(DENSITIES, jobs, pairs, alone, strict=True):
        _, stored = commit_versions(chain_of(paths), work / f"{percent}-store")
        found.append(_Density(percent, pair, stored, ours))
    _show([{"committed": one.stored.frames, **one.ours, **one.peers} for one in found])
    return [_chosen(one) for one in found] + [_committed(one) for one in found]


def _write_pair(data: Data, percent: float, work: Path) -> tuple[Path, Path]:
    base, new = _states(data, percent)
    paths = work / f"{percent}-base.safetensors", work / f"{percent}-new.safetensors"
    write_state(base, paths[0])
    write_state(new, paths[1])
    return paths


@dataclass(frozen=True, slots=True)
class _Density:
    """A difference of one density.

    Attributes:
        percent: Share of the elements that changed.
        pair: Measurements of the difference, with the bytes of peers.
        stored: Bytes that a commit added to the store.
        ours: Bytes of each of our encodings alone, and of the smallest one of each chunk.
    """

    percent: float
    pair: Pair
    stored: Stored
    ours: dict[str, int]

    @property
    def peers(self) -> dict[str, int]:
        """Number of bytes of each installed peer."""
        return {name: size for name, size in self.pair.peers.items() if size is not None}

    @property
    def smallest(self) -> tuple[str, int]:
        """Name and bytes of the smallest alternative to the encodings that a commit chooses."""
        sizes = self.ours | self.peers
        del sizes[CHOSEN]
        name = min(sizes, key=sizes.__getitem__)
        return name, sizes[name]

    def compare(self, what: str, size: int, note: str) -> Result:
        """Return a row that compares bytes per changed element with the smallest alternative."""
        return compared(
            f"{self.percent} % changed: {what}",
            size / self.pair.changed,
            self.smallest[1] / self.pair.changed,
            _UNIT,
            target=1.0,
            note=note,
        )


def _chosen(found: _Density) -> Result:
    pair, size = found.pair, found.ours[CHOSEN]
    return found.compare(
        "chosen",
        size,
        f"{pair.changed / pair.elements:.3%} of {pair.elements:,}; reference: {found.smallest[0]}, "
        f"the smallest alternative. Limit: {pair.conditional / pair.changed:.3f}, the entropy "
        f"given tensor and exponent, exceeded by {size / pair.conditional - 1:.1%}",
    )


def _committed(found: _Density) -> Result:
    stored = found.stored
    return found.compare(
        "committed",
        stored.frames,
        f"reference: {found.smallest[0]}. Frames of a commit, which stores some chunks whole to "
        "limit the cost of reading chains; all its objects: "
        f"{stored.everything / found.pair.changed:.3f}",
    )


def _states(data: Data, percent: float) -> tuple[State, State]:
    """Return two states that differ in a share of their elements.

    Up to the density of an RL step, they are those of a step, with a random part of its changes.
    Above it, they are the base and a state between it and its fine-tune, like an early checkpoint.
    From `BUSY` on, the word embeddings are left out: half of the model, most of it never trained.
    """
    share = percent / 100
    before, after = (read_state(path) for path in data.fast[-2:])
    changed = sum(int(np.count_nonzero(before[name] != after[name])) for name in before)
    if share * sum(len(tensor) for tensor in before.values()) <= changed:
        return before, thin(before, after, share)
    base, tuned = (read_state(path) for path in data.masters)
    if percent >= BUSY:
        base = {name: tensor for name, tensor in base.items() if "word_embeddings" not in name}
    rounded = read_state(data.base)
    return {name: rounded[name] for name in base}, between(base, tuned, share)


def _own(pair: tuple[Path, Path]) -> dict[str, int]:
    """Return the bytes of the smallest encoding of each chunk, and of each encoding alone."""
    base, new = (read_state(path) for path in pair)
    dtype = dtype_of(base)
    kind = kind_of(dtype)
    sizes = dict.fromkeys((CHOSEN, "sparse alone", "dense alone", "planes alone"), 0)
    for old, chunk in chunks(base, new):
        sizes["planes alone"] += len(encode_planes(chunk, dtype.plane_width))
        if old != chunk:  # an equal chunk is not stored again
            sizes[CHOSEN] += smallest(old, chunk, dtype)
            sizes["sparse alone"] += len(sparse_encode(old, chunk, kind))
            sizes["dense alone"] += len(dense_encode(old, chunk, kind))
    return sizes


def _show(lines: Sequence[dict[str, int]]) -> None:
    """Print a table of bytes, with a column for each density and a row for each encoding."""
    print("Bytes, by share of elements changed")
    print("".join(["encoding".ljust(20), *(f"{percent} %".rjust(12) for percent in DENSITIES)]))
    for name in lines[0]:
        cells = (f"{line[name]:,}".rjust(12) for line in lines)
        print("".join([name.ljust(20), *cells]))
    print(flush=True)
