"""Measures families in one store: with parents, without them, and after a repack."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file, save_file

import casweights
from tools.bench.encodings.data import chain_of, commit_versions, disk_bytes
from tools.bench.harness import compared, measured

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.encodings.data import Data
    from tools.bench.harness import Result

    Versions = list[tuple[str, Path, str | None]]

TARGET, TARGET_WITHOUT = 56, 1.01  # MB; times the bytes with parents
MOST_READ = 1.5  # of the version that is stored whole


class _Repacked(NamedTuple):
    """MB of a store before and after a repack, and what is known since.

    Attributes:
        before: MB of all objects before.
        after: MB of all objects after.
        read: The most that a version reads, as a multiple of the one that reads least.
        gap: By how much the trees exceed the smallest ones, as a share.
    """

    before: float
    after: float
    read: float
    gap: float


def trees(data: Data, work: Path) -> list[Result]:
    """Return the rows on families that are repacked."""
    family = [(version.name, version.path, version.parent) for version in data.family]
    large = [*family, *_second_run(data), *_mixed(data, work)]
    unnamed: Versions = [(name, path, None) for name, path, _ in large]
    given = _repack(family, work / "trees")
    with_parents = _repack(large, work / "trees-named")
    without = _repack(unnamed, work / "trees-unnamed")
    note = f"{len(family)} versions with parents, which took {given.before:.1f} MB when committed"
    named = f"{len(large)} versions; reference: as committed with their parents"
    return [
        measured("family, repacked", given.after, "MB", target=TARGET, note=note),
        measured("family: most that is read", given.read, "wholes", target=MOST_READ, note=note),
        measured("family: gap to the unlimited tree", 100 * given.gap, "%", note=note),
        compared("named, repacked", with_parents.after, with_parents.before, "MB", note=named),
        compared(
            "without parents",
            without.before,
            with_parents.before,
            "MB",
            target=TARGET_WITHOUT,
            note=named,
        ),
        compared(
            "without parents, repacked",
            without.after,
            with_parents.before,
            "MB",
            target=TARGET_WITHOUT,
            note=named,
        ),
        measured(
            "without parents: most that is read",
            without.read,
            "wholes",
            note=f"{named}. Means of two that are calculated may read 2.5, see design/040",
        ),
    ]


def _repack(versions: Versions, directory: Path) -> _Repacked:
    commit_versions(versions, directory)
    before = disk_bytes(directory)
    with casweights.open(directory, cache_size=1 << 29) as store:
        done = store.repack(grace=timedelta(0))
        reads = [version.read_bytes for version in store.stats().versions]
    gap = done.tree_bytes / done.least_bytes - 1
    return _Repacked(before / 1e6, disk_bytes(directory) / 1e6, max(reads) / min(reads), gap)


def _second_run(data: Data) -> Versions:
    first, *others = chain_of(data.fast)
    run = [(first[0], first[1], "base"), *others]
    return [(f"fast-{name}", path, f"fast-{p}" if p != "base" else p) for name, path, p in run]


def _mixed(data: Data, work: Path) -> Versions:
    """Return means of versions, with the one of their parents that is nearest."""
    files = {version.name: load_file(version.path) for version in data.family}
    tuned = sorted(name for name in files if name.startswith("tuned"))
    made = {
        "mean": (tuned[-1], "seed"),
        "merged": ("layers", "adapter"),
        "half": ("adapter", "base"),
        "soup": (tuned[-2], tuned[-1]),
    }
    versions: Versions = []
    for name, (one, other) in made.items():
        path = work / f"{name}.safetensors"
        pairs = ((n, files[one][n].float(), files[other][n].float()) for n in files[one])
        save_file({n: ((a + b) / 2).to(torch.bfloat16) for n, a, b in pairs}, path)
        versions.append((name, path, one))
    return versions
