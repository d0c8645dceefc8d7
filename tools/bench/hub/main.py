"""Compares stores in buckets of a local Hub with hf_xet on plain files and with TRL's patches.

Prints tables and one line of JSON. Usage: tools/bench/run hub [--size MiB] [--only ROW...]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench.harness import conclude, head
from tools.bench.hub.model import MiB
from tools.bench.hub.probe import LINES
from tools.bench.hub.report import Report, describe
from tools.bench.hub.rows import SHARE, Rows, find_trips
from tools.bench.hub.versions import row_versions

if TYPE_CHECKING:
    from collections.abc import Callable

TITLE = "casweights: stores in buckets"
ROWS = ("push", "step", "checkout", "requests", "versions", "memory")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tools/bench/run hub", description=__doc__)
    made.add_argument("--size", type=int, default=1024, help="MiB of the model (default: 1024)")
    made.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    made.add_argument(
        "--conditions",
        nargs="+",
        choices=LINES,
        default=list(LINES),
        help="networks (default: all)",
    )
    made.add_argument("--repeat", type=int, default=3, help="pairs of a measurement (default: 3)")
    made.add_argument("--versions", type=int, default=10_000, help="versions of that row")
    made.add_argument(
        "--memory-size",
        type=int,
        default=2048,
        help="MiB of the model of the row on memory; its target is for 8192",
    )
    made.add_argument(
        "--dir", type=Path, default=None, help="folder for temporary files (needs space)"
    )
    return made


def main() -> int:
    options = parser().parse_args()
    facts: dict[str, object] = {
        "model": f"{options.size} MiB of synthetic bf16; a step changes {SHARE:.0%} of it",
        "conditions": "; ".join(describe(LINES[name]) for name in options.conditions),
        "cores": os.cpu_count(),
        "repetitions": options.repeat,
        "bytes": "bodies of requests that the Hub received (rows 1 and 2) or sent (rows 3 and 4)",
    }
    head(TITLE, facts)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        report = _measure(options, Path(folder))
    print(
        "trips: sequential round trips, estimated with a tiny model from its times at 0 and at "
        "200 ms; limit: the larger of bytes / bandwidth and trips x latency."
    )
    return 1 if conclude(TITLE, {**facts, **report.to_json()}, report.results) else 0


def _measure(options: argparse.Namespace, work: Path) -> Report:
    """Measure and print the selected rows."""
    lines = [LINES[name] for name in options.conditions]
    rows = Rows(work, options.size * MiB, options.repeat, lines)
    makers: dict[str, Callable[[Report], None]] = {
        "push": rows.row_push,
        "step": rows.row_step,
        "checkout": rows.row_checkout,
        "requests": rows.row_requests,
        "versions": lambda report: row_versions(report, work, options.versions),
        "memory": lambda report: rows.row_memory(report, options.memory_size * MiB),
    }
    compares = {"push", "step", "checkout"} & set(options.only)
    report = Report(find_trips(work) if compares else {}, os.cpu_count() or 1)
    for name in options.only:
        report.make(makers[name])
    return report


if __name__ == "__main__":
    sys.exit(main())
