"""Measures the size of a store with a family of models, compared with other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.format.planes import encode_planes
from tools.bench.encodings.data import (
    Data,
    chunks,
    commit_versions,
    dtype_of,
    smallest_state,
    spread,
)
from tools.bench.encodings.dedup import dedup
from tools.bench.encodings.peers import bitx_encode, zipnn_encode
from tools.bench.encodings.programs import NotInstalledError, borg, restic
from tools.bench.encodings.states import read_state
from tools.bench.harness import Result, compared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tools.bench.encodings.data import Stored

OF_ZIPLLM = 0.75


def family(data: Data, work: Path) -> list[Result]:
    """Return the rows on the family in one store, each version as a difference from its parent."""
    versions = [(version.name, version.path, version.parent) for version in data.family]
    stored = commit_versions(versions, work / "family")
    ours = sum(one.everything for one in stored)
    files = {version.name: version.path for version in data.family}
    jobs = [(files[v.parent] if v.parent else None, v.path) for v in data.family]
    zipllm: list[tuple[str, int]] = spread(_zipllm, jobs)
    reference = sum(size for _, size in zipllm) / 1e6
    least: list[int] = spread(_smallest, jobs)
    return [
        compared(
            "family, against ZipLLM-like",
            ours / 1e6,
            reference,
            "MB",
            target=OF_ZIPLLM,
            note=_zipllm_note(data, stored, zipllm),
        ),
        compared(
            "family, encodings alone",
            sum(least) / 1e6,
            reference,
            "MB",
            note="reference: the same. Each chunk in its smallest encoding; no limit on chains",
        ),
        *_others(ours, list(files.values()), work),
    ]


def _zipllm_note(data: Data, stored: Sequence[Stored], zipllm: Sequence[tuple[str, int]]) -> str:
    raw = sum(version.path.stat().st_size for version in data.family)
    sizes = ", ".join(
        f"{version.name} {one.everything / 1e6:.2f} ({other / 1e6:.2f})"
        for version, one, (_, other) in zip(data.family, stored, zipllm, strict=True)
    )
    return (
        f"reference: {zipllm[0][0]} for the base, BitX from its parent for every other version, "
        f"nothing else counted; {raw / 1e6:.1f} MB raw. MB per version (reference): {sizes}"
    )


def _others(ours: int, paths: Sequence[Path], work: Path) -> list[Result]:
    """Return the rows on programs that store the same files without knowledge of models."""
    others: dict[str, tuple[Callable[[], int], str]] = {
        "Xet-like": (lambda: dedup(paths), "see encodings/dedup.py; counts chunks only"),
        "restic": (lambda: restic(paths, work)[-1], "its own repository, compression auto"),
        "borg": (lambda: borg(paths, work)[-1], "its own repository, zstd-3, default chunker"),
    }
    results = []
    for name, (measure, how) in others.items():
        try:
            size = measure() / 1e6
        except NotInstalledError:
            print(f"not installed: {name}")
            continue
        note = f"reference: {how}"
        results.append(compared(f"family, against {name}", ours / 1e6, size, "MB", note=note))
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
