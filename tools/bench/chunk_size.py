"""Measures the effect of chunk size and compression on variants of a real model.

Prints two tables and one line of JSON. Usage: tools/bench/run chunk_size [--rounds N] [--dir DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import casweights
from casweights.config import KiB, MiB, StoreConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.config import Compression
    from casweights.results import StoreStats

SIZES = [256 * KiB, 512 * KiB, 1 * MiB, 2 * MiB, 4 * MiB, 8 * MiB, 16 * MiB]
COMPRESSIONS: list[Compression] = ["fast", "auto", "small"]


@dataclass(frozen=True, slots=True)
class Row:
    """The result of storing all variants with one chunk size and compression.

    Attributes:
        chunk_size: Bytes of a chunk.
        compression: The compression.
        plain_bytes: Bytes of plain copies of all versions.
        chunk_bytes: Raw bytes of the distinct chunks, that is, after deduplication.
        chunks: Number of distinct chunks.
        pack_bytes: Bytes of packs, with their indexes.
        snapshot_bytes: Bytes of snapshot objects.
        commit_seconds: Seconds of all commits, median of the rounds.
        checkout_seconds: Seconds of all checkouts to empty directories, median of the rounds.
    """

    chunk_size: int
    compression: Compression
    plain_bytes: int
    chunk_bytes: int
    chunks: int
    pack_bytes: int
    snapshot_bytes: int
    commit_seconds: float
    checkout_seconds: float


def make_variants(work: Path) -> list[Path]:
    """Make the variants that the demo makes; return the directories, the base first."""
    from tools.models import variants  # imports transformers, which takes seconds

    base = variants.base_directory()
    made = {name: work / name for name in ("frozen", "full", "vocabulary", "half", "adapter")}
    variants.fine_tune(base, made["frozen"], frozen_embeddings=True)
    variants.fine_tune(base, made["full"])
    variants.enlarge_vocabulary(base, made["vocabulary"])
    variants.convert_to_half(base, made["half"])
    variants.train_adapter(base, made["adapter"])
    return [base, *made.values()]


def measure(
    models: Sequence[Path], work: Path, chunk_size: int, compression: Compression, rounds: int
) -> Row:
    """Commit all models to a new store and check them out, `rounds` times; return the medians."""
    found = [_round(models, work, chunk_size, compression) for _ in range(rounds)]
    commits, checkouts, (stats, *_) = zip(*found, strict=True)
    return Row(
        chunk_size=chunk_size,
        compression=compression,
        plain_bytes=stats.version_bytes,
        chunk_bytes=stats.chunk_bytes,
        chunks=stats.chunks,
        pack_bytes=stats.pack_bytes,
        snapshot_bytes=stats.snapshot_bytes,
        commit_seconds=statistics.median(commits),
        checkout_seconds=statistics.median(checkouts),
    )


def _round(
    models: Sequence[Path], work: Path, chunk_size: int, compression: Compression
) -> tuple[float, float, StoreStats]:
    """Return the seconds of all commits and of all checkouts, and the statistics of the store."""
    store_dir, out = work / "store", work / "out"
    config = StoreConfig(chunk_size=chunk_size)
    with casweights.open(store_dir, create=True, config=config) as store:
        start = time.perf_counter()
        made = [
            store.commit(model, branch=f"v{n}", compression=compression)
            for n, model in enumerate(models)
        ]
        middle = time.perf_counter()
        for n, snapshot in enumerate(made):
            store.checkout(snapshot, out / str(n))
        end = time.perf_counter()
        stats = store.stats()
    shutil.rmtree(store_dir)
    shutil.rmtree(out)
    return middle - start, end - middle, stats


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a Markdown table, with times relative to the row of the default chunk size."""
    base = next((row for row in rows if row.chunk_size == 4 * MiB), rows[0])
    print(f"\n{title}\n")
    print(
        "| chunk size | compression | plain MB | unique MB | chunks | packs MB | snapshots kB "
        "| commit | checkout |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for row in rows:
        print(
            f"| {row.chunk_size // KiB} KiB | {row.compression} | {row.plain_bytes / 1e6:.1f} "
            f"| {row.chunk_bytes / 1e6:.2f} | {row.chunks} | {row.pack_bytes / 1e6:.2f} "
            f"| {row.snapshot_bytes / 1e3:.1f} | {row.commit_seconds / base.commit_seconds:.2f}x "
            f"| {row.checkout_seconds / base.checkout_seconds:.2f}x |"
        )
    print(
        f"\nTimes are relative: 1.00x is {base.commit_seconds:.2f} s for all commits and "
        f"{base.checkout_seconds:.2f} s for all checkouts."
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tools/bench/run chunk_size", description=__doc__)
    made.add_argument("--rounds", type=int, default=3, help="repetitions (default: 3)")
    made.add_argument("--dir", type=Path, default=None, help="folder for temporary files")
    return made


def main() -> int:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        work = Path(directory)
        models = make_variants(work)
        measure(models, work, SIZES[0], "fast", 1)  # a first run fills caches
        sizes = [measure(models, work, size, "fast", options.rounds) for size in SIZES]
        policies = [measure(models, work, 4 * MiB, p, options.rounds) for p in COMPRESSIONS]
    show('Chunk sizes with compression "fast"', sizes)
    show("Compressions with chunks of 4 MiB", policies)
    print(json.dumps({"rows": [asdict(row) for row in (*sizes, *policies)]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
