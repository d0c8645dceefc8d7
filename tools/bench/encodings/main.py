"""Measures size and speed of the encodings, on versions of a real model and on a synthetic one.

Prints a table for each section and, as the last line, all of them as JSON.
Usage: tools/bench/run encodings [--only SECTION ...] [--data DIR] [--size MiB] [--rounds N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from casweights.config import MiB
from casweights.kernels import COMPILED
from casweights.system.threads import default_workers
from tools.bench.encodings import floats, sizes, speeds, stores
from tools.bench.encodings.adapters import adapters
from tools.bench.encodings.data import Data
from tools.bench.encodings.functions import functions
from tools.bench.encodings.orders import orders
from tools.bench.encodings.quantized import quantized
from tools.bench.encodings.thousand import thousand
from tools.bench.encodings.trees import trees
from tools.bench.harness import conclude, head, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.bench.harness import Result

TITLE = "casweights: the encodings"
SECTIONS = {
    "steps": "bytes of RL steps at two learning rates",
    "densities": "bytes of differences, from 0.01 % to 60 % of elements changed",
    "speeds": "GB/s of kernels, commits, loads and checkouts of a synthetic model",
    "dense": "bytes and GB/s of fine-tunes of a real model",
    "planes": "bytes and GB/s of a real model without a base",
    "quantized": "bytes of a checkpoint of a fine-tune in quantized formats",
    "functions": "bytes of versions that are functions of others in the store",
    "adapters": "differences with factors, relative to those without",
    "orders": "bytes of versions for which something is there that is a poor base",
    "family": "bytes of all versions of a family in one store",
    "trees": "bytes of families without parents, and after a repack",
    "thousand": "bytes of a thousand consecutive versions, and of reading them",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tools/bench/run encodings", description=__doc__)
    sections = "; ".join(f"{name}: {what}" for name, what in SECTIONS.items())
    made.add_argument(
        "--only",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        help=sections.replace("%", "%%"),
    )
    made.add_argument(
        "--data",
        type=Path,
        default=None,
        help="folder of the real versions, which are made if missing (about ten minutes); by "
        "default a temporary one",
    )
    made.add_argument(
        "--dir", type=Path, default=None, help="folder for temporary files (needs 8 GiB)"
    )
    made.add_argument("--size", type=int, default=1024, help="MiB of the synthetic model")
    made.add_argument("--rounds", type=int, default=3, help="repetitions (default: 3)")
    return made


def main() -> int:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        return _run(options, Path(directory))


def _run(options: argparse.Namespace, work: Path) -> int:
    facts: dict[str, object] = {
        "kernels": "compiled" if COMPILED else "numpy",
        "cores": default_workers(),
        "rounds": options.rounds,
    }
    makers = _makers(options, work)
    head(TITLE, facts)
    results = []
    for name in [name for name in SECTIONS if name in options.only]:
        start = time.perf_counter()
        found = makers[name]()
        print(f"{name}: {SECTIONS[name]} ({time.perf_counter() - start:.0f} s)\n")
        table(found)
        results += found
    return 1 if conclude(TITLE, facts, results) else 0


def _makers(options: argparse.Namespace, work: Path) -> dict[str, Callable[[], list[Result]]]:
    """Return the functions that measure the sections."""
    data = Data(options.data or work / "data")
    size, rounds = options.size * MiB, options.rounds
    return {
        "steps": lambda: sizes.rl_steps(data, work),
        "densities": lambda: sizes.densities(data, work / "densities"),
        "speeds": lambda: speeds.speeds(work / "speeds", size=size, rounds=rounds),
        "dense": lambda: floats.dense(data, rounds),
        "planes": lambda: floats.planes(data, rounds),
        "quantized": lambda: quantized(data),
        "functions": lambda: functions(data),
        "adapters": lambda: adapters(data, rounds),
        "orders": lambda: orders(data),
        "family": lambda: stores.family(data, work),
        "trees": lambda: trees(data, work),
        "thousand": lambda: thousand(data, work / "thousand"),
    }


if __name__ == "__main__":
    sys.exit(main())
