"""A trainer and replicas with a bucket of a local Hub between them, against TRL's patches.

Prints tables and one line of JSON. Usage: tools/bench/run sync [--size MiB] [--only ROW...]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench.harness import conclude, head, table
from tools.bench.hub.model import MiB
from tools.bench.hub.report import Report, describe
from tools.bench.sync.device import row_device
from tools.bench.sync.rows import Rows
from tools.bench.sync.steps import LINES, SHARE, find_trips

if TYPE_CHECKING:
    from collections.abc import Callable

TITLE = "casweights: live sync"
ROWS = ("step", "replicas", "join", "memory", "device")
_TINY = 2  # MiB


def main() -> int:
    options = _parse()
    lines = [LINES[name] for name in options.conditions]
    facts: dict[str, object] = {
        "model": f"{options.size} MiB of synthetic bf16; a step changes {SHARE:.0%} of it",
        "conditions": "; ".join(describe(line) for line in lines),
        "cores": os.cpu_count(),
        "repetitions": options.repeat,
        "patches": f"compared with {options.patches}",
        "load": f"{os.getloadavg()[0]:.1f} before it began",
    }
    head(TITLE, facts)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        work = Path(folder)
        trips = find_trips(work, _TINY * MiB) if "step" in options.only else {}
        report = Report(trips, os.cpu_count() or 1)
        rows = Rows(
            work, options.size * MiB, options.repeat, lines, numpy=options.patches == "numpy"
        )
        makers: dict[str, Callable[[Report], None]] = {
            "step": rows.row_step,
            "replicas": lambda report: rows.row_replicas(report, options.replicas),
            "join": lambda report: rows.row_join(report, options.join_size * MiB, options.behind),
            "memory": lambda report: rows.row_memory(report, options.memory_size * MiB),
            "device": lambda report: row_device(
                report, work, options.device_size * MiB, options.repeat
            ),
        }
        for name in options.only:
            results, limits = len(report.results), len(report.limits)
            makers[name](report)
            if len(report.results) > results:
                table(report.results[results:])
            if len(report.limits) > limits:
                report.print_limits(limits)
    print(
        "trips: round trips of a tiny model that wait for one another, from its times at 0 and "
        "200 ms; limit: the largest one of bytes / bandwidth, trips x latency and what the memory "
        "must move at the speed of copy_."
    )
    facts["load"] = f"{facts['load']}, {os.getloadavg()[0]:.1f} at the end"
    missed = conclude(TITLE, {**facts, **report.to_json()}, report.results)
    return 1 if missed and not options.smoke else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB of the model")
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--conditions", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument(
        "--patches",
        choices=("torch", "numpy"),
        default="torch",
        help="what finds the changes for TRL's patches: numpy is faster on a CPU",
    )
    parser.add_argument("--repeat", type=int, default=3, help="steps of a measurement")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--behind", type=int, default=500, help="steps of the row on joining")
    parser.add_argument("--join-size", type=int, default=24, help="MiB of the row on joining")
    parser.add_argument("--memory-size", type=int, default=1024, help="MiB of the row on memory")
    parser.add_argument("--device-size", type=int, default=2048, help="MiB of the row on devices")
    parser.add_argument("--dir", type=Path, default=None, help="where to work (needs space)")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="all rows with tiny models, to see that everything runs; the figures mean nothing",
    )
    options = parser.parse_args()
    if options.smoke:
        options.size = options.join_size = options.memory_size = options.device_size = _TINY
        options.repeat, options.replicas, options.behind = 1, [1, 2], 5
    return options


if __name__ == "__main__":
    sys.exit(main())
