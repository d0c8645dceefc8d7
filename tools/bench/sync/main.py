"""Compares live sync through a bucket of a local Hub with TRL's patches.

Prints tables and one line of JSON. Usage: tools/bench/run sync [--size MiB] [--only ROW...]
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
from tools.bench.hub.report import Report, describe
from tools.bench.sync.device import row_device
from tools.bench.sync.late import row_join
from tools.bench.sync.replicas import row_replicas
from tools.bench.sync.rows import Rows
from tools.bench.sync.steps import LINES, SHARE, find_trips

if TYPE_CHECKING:
    from collections.abc import Callable

TITLE = "casweights: live sync"
ROWS = ("step", "replicas", "join", "memory", "device")
_TINY = 2  # MiB


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tools/bench/run sync", description=__doc__)
    made.add_argument("--size", type=int, default=512, help="MiB of the model (default: 512)")
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
    made.add_argument(
        "--patches",
        choices=("torch", "numpy"),
        default="torch",
        help="library that finds the changes for TRL's patches; numpy is faster on a CPU",
    )
    made.add_argument("--repeat", type=int, default=3, help="steps of a measurement (default: 3)")
    made.add_argument(
        "--replicas", type=int, nargs="+", default=[1, 4, 8], help="numbers of replicas to compare"
    )
    made.add_argument("--behind", type=int, default=500, help="steps of that row's branch")
    for name, size in (("join", 24), ("memory", 1024), ("device", 2048)):
        made.add_argument(
            f"--{name}-size", type=int, default=size, help=f"MiB of the model of the row {name}"
        )
    made.add_argument(
        "--dir", type=Path, default=None, help="folder for temporary files (needs space)"
    )
    made.add_argument(
        "--smoke",
        action="store_true",
        help="run all rows with tiny models, as a test; the figures mean nothing",
    )
    return made


def main() -> int:
    options = parser().parse_args()
    if options.smoke:
        options.size = options.join_size = options.memory_size = options.device_size = _TINY
        options.repeat, options.replicas, options.behind = 1, [1, 2], 5
    facts: dict[str, object] = {
        "model": f"{options.size} MiB of synthetic bf16; a step changes {SHARE:.0%} of it",
        "conditions": "; ".join(describe(LINES[name]) for name in options.conditions),
        "cores": os.cpu_count(),
        "repetitions": options.repeat,
        "patches": f"compared with {options.patches}",
        "load": f"{os.getloadavg()[0]:.1f} at the start",
    }
    head(TITLE, facts)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        report = _measure(options, Path(folder))
    print(
        "trips: sequential round trips, estimated with a tiny model from its times at 0 and at "
        "200 ms; limit: the largest of bytes / bandwidth, trips x latency, and the time to move "
        "the bytes in memory at the speed of copy_."
    )
    facts["load"] = f"{facts['load']}, {os.getloadavg()[0]:.1f} at the end"
    missed = conclude(TITLE, {**facts, **report.to_json()}, report.results)
    return 1 if missed and not options.smoke else 0


def _measure(options: argparse.Namespace, work: Path) -> Report:
    """Measure and print the selected rows."""
    lines, rounds = [LINES[name] for name in options.conditions], options.repeat
    size, numpy = options.size * MiB, options.patches == "numpy"
    rows = Rows(work, size, rounds, lines, numpy=numpy)
    makers: dict[str, Callable[[Report], None]] = {
        "step": rows.row_step,
        "replicas": lambda report: row_replicas(report, work, size, rounds, options.replicas),
        "join": lambda report: row_join(
            report, work, options.join_size * MiB, options.behind, lines
        ),
        "memory": lambda report: rows.row_memory(report, options.memory_size * MiB),
        "device": lambda report: row_device(report, work, options.device_size * MiB, rounds),
    }
    trips = find_trips(work, _TINY * MiB) if "step" in options.only else {}
    report = Report(trips, os.cpu_count() or 1)
    for name in options.only:
        report.make(makers[name])
    return report


if __name__ == "__main__":
    sys.exit(main())
