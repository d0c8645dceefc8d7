"""Bytes of RL steps, and of differences of every density, beside what others need for them."""

from __future__ import annotations

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
from tools.bench.encodings.peers import read_state
from tools.bench.harness import Result, compared, measured

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.encodings.peers import State

DENSITIES = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60)  # percent
BUSY = 60
SKIPPED = (2, 5, 8, 10)  # steps
CHOSEN = "chosen"
# Name, and what a changed element may take in frames alone.
RATES = (("1e-6", 1.0), ("3e-6", 0.92))
OF_BOUND, EVERYTHING, OF_GAPS, OF_INDICES = 1.10, 1.2, 1 / 4, 1 / 6


def rl_steps(data: Data, work: Path) -> list[Result]:
    """Consecutive RL steps at two rates, committed one after the other."""
    results = []
    for (rate, target), files in zip(RATES, (data.chain("rl"), data.fast), strict=True):
        pairs: list[Pair] = spread(compare_files, list(pairwise(files)))
        _, *stored = commit_versions(chain_of(files), work / f"rl-{rate}")
        results += _steps(f"lr {rate}", target, pairs, stored)
        results += _skips(f"lr {rate}", files)
    return results


def _skips(what: str, files: Sequence[Path]) -> list[Result]:
    """Differences from several steps before, beside the steps."""
    steps: list[int] = spread(_between, list(pairwise(files)))
    skipped: list[int] = spread(_between, [(files[0], files[k]) for k in SKIPPED])
    note = "reference: the steps, one by one; frames alone"
    return [
        compared(f"{what}: over {k} steps", size / 1e3, sum(steps[:k]) / 1e3, "kB", note=note)
        for k, size in zip(SKIPPED, skipped, strict=True)
    ]


def _between(pair: tuple[Path, Path]) -> int:
    return smallest_state((read_state(pair[0]), read_state(pair[1])))


def _steps(
    what: str, target: float, pairs: Sequence[Pair], stored: Sequence[Stored]
) -> list[Result]:
    changed = sum(pair.changed for pair in pairs)
    frames = sum(step.frames for step in stored)
    everything = sum(step.everything for step in stored)
    bound = sum(pair.conditional for pair in pairs)
    memoryless = sum(pair.memoryless for pair in pairs)
    each = [step.frames / pair.changed for step, pair in zip(stored, pairs, strict=True)]
    share = changed / sum(pair.elements for pair in pairs)
    peers = {name: _total([pair.peers[name] for pair in pairs]) for name in pairs[0].peers}
    gaps, indices = peers["trl_v3"], peers["trl_v1"]
    assert gaps is not None
    assert indices is not None
    unit = "B/change"
    rows = [
        measured(
            f"{what}: frames",
            frames / changed,
            unit,
            target=target,
            note=f"{len(pairs)} steps, {share:.2%} of the elements each; {min(each):.3f} to "
            f"{max(each):.3f}. Limit: {bound / changed:.3f}, the entropy of places and steps given "
            f"tensor and exponent; ours is {frames / bound - 1:.1%} above it. Without these it "
            f"would be {memoryless / changed:.3f}",
        ),
        compared(
            f"{what}: frames, of the entropy",
            frames / changed,
            bound / changed,
            unit,
            target=OF_BOUND,
            note="reference: that entropy, which does not count its own parameters",
        ),
        measured(
            f"{what}: all objects",
            everything / changed,
            unit,
            target=EVERYTHING,
            note=f"packs with indexes, snapshot, branch: {everything / len(pairs):,.0f} bytes a "
            f"commit; {(everything - frames) / len(pairs):,.0f} of them are not frames. Limit: "
            f"frames at {bound / changed:.3f} and a digest of 32 bytes for each new chunk",
        ),
        compared(
            f"{what}: of uint16 gaps + bf16",
            frames / changed,
            gaps / changed,
            unit,
            target=OF_GAPS,
            note=f"reference: trl_v3; with all objects {everything / gaps:.3f}",
        ),
        compared(
            f"{what}: of int32 + bf16",
            frames / changed,
            indices / changed,
            unit,
            target=OF_INDICES,
            note=f"reference: trl_v1; with all objects {everything / indices:.3f}",
        ),
    ]
    for name, size in peers.items():
        if size is not None and name not in ("trl_v1", "trl_v3"):
            note = "reference: that peer's bytes, in the leanest container"
            rows.append(
                compared(f"{what}: of {name}", frames / changed, size / changed, unit, note=note)
            )
    missing = [name for name, size in peers.items() if size is None]
    if missing:
        print(f"not installed: {', '.join(missing)}")
    return rows


def _total(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def densities(data: Data, work: Path) -> list[Result]:
    """Differences of every density, derived from real ones; see `_states`."""
    work.mkdir()
    jobs = []
    for percent in DENSITIES:
        base, new = _states(data, percent)
        paths = work / f"{percent}-base.safetensors", work / f"{percent}-new.safetensors"
        write_state(base, paths[0])
        write_state(new, paths[1])
        jobs.append(paths)
    pairs: list[Pair] = spread(compare_files, jobs)
    alone: list[dict[str, int]] = spread(_own, jobs)
    lines, chosen, committed = [], [], []
    for percent, paths, pair, ours in zip(DENSITIES, jobs, pairs, alone, strict=True):
        _, stored = commit_versions(chain_of(paths), work / f"{percent}-store")
        line = ours | {name: size for name, size in pair.peers.items() if size is not None}
        lines.append({"committed": stored.frames, **line})
        size = line.pop(CHOSEN)
        best = min(line, key=line.__getitem__)
        what, unit, changed = f"{percent} % changed", "B/change", pair.changed
        chosen.append(
            compared(
                f"{what}: chosen",
                size / changed,
                line[best] / changed,
                unit,
                target=1.0,
                note=f"{changed / pair.elements:.3%} of {pair.elements:,}; reference: {best}, the "
                f"smallest of all others. Limit: {pair.conditional / changed:.3f}, the entropy "
                f"given tensor and exponent; ours is {size / pair.conditional - 1:.1%} above it",
            )
        )
        committed.append(
            compared(
                f"{what}: committed",
                stored.frames / changed,
                line[best] / changed,
                unit,
                target=1.0,
                note=f"reference: {best}. Frames of a commit, which may store chunks whole lest "
                f"reading chains cost too much; all its objects: {stored.everything / changed:.3f}",
            )
        )
    _show(lines)
    return chosen + committed


def _states(data: Data, percent: float) -> tuple[State, State]:
    """Two states that differ in so many elements.

    Up to the density of an RL step: such a step, of which a random share of the changes is kept.
    Above: the base, and a state between it and its fine-tune in fp32, as an early checkpoint is.
    `BUSY` and above: without the word embeddings, half of the model, most of it unused.
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
    """The smallest that a commit could choose, and each encoding alone."""
    base, new = (read_state(path) for path in pair)
    dtype = dtype_of(base)
    kind = kind_of(dtype)
    sizes = dict.fromkeys((CHOSEN, "sparse alone", "dense alone", "planes alone"), 0)
    for old, chunk in chunks(base, new):
        sizes["planes alone"] += len(encode_planes(chunk, dtype.plane_width))
        if old != chunk:  # else it is the same chunk
            sizes[CHOSEN] += smallest(old, chunk, dtype)
            sizes["sparse alone"] += len(sparse_encode(old, chunk, kind))
            sizes["dense alone"] += len(dense_encode(old, chunk, kind))
    return sizes


def _show(lines: Sequence[dict[str, int]]) -> None:
    """A table of bytes: densities across, encodings down."""
    print("".join(["bytes".ljust(20), *(f"{percent} %".rjust(12) for percent in DENSITIES)]))
    for name in lines[0]:
        cells = (f"{line[name]:,}".rjust(12) for line in lines)
        print("".join([name.ljust(20), *cells]))
    print(flush=True)
