"""Measuring in pairs: ours and the reference in turn, and the median of the pairs' ratios."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of a report.

    Attributes:
        what: What was measured.
        ours: Median of ours, in `unit`.
        reference: Median of the reference; None where the target is absolute.
        unit: Unit of both.
        ratio: Median of the pairs' ratios; of an absolute target: ours divided by the target.
        target: What `ratio` must not exceed; None where nothing is asked of it.
        note: What bounds the result, or what the reference is.
    """

    what: str
    ours: float
    reference: float | None
    unit: str
    ratio: float
    target: float | None
    note: str

    @property
    def reached(self) -> bool:
        return self.target is None or self.ratio <= self.target


def pair(
    what: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    *,
    target: float | None,
    note: str,
    prepare: Callable[[], object] = lambda: None,
    rounds: int = 5,
) -> Result:
    """Time two functions in turn.

    Args:
        what: The row's name.
        ours: Ours.
        reference: What it is compared with.
        target: The ratio to reach.
        note: See `Result`.
        prepare: Called before each timed call, untimed.
        rounds: Pairs that count; one more before them warms up.
    """
    times: list[tuple[float, float]] = []
    for n in range(rounds + 1):
        print(f"  {what}: round {n} of {rounds}", end="\r", file=sys.stderr)
        times.append((_time(ours, prepare), _time(reference, prepare)))
    counted = times[1:]
    return Result(
        what=what,
        ours=statistics.median(a for a, _ in counted),
        reference=statistics.median(b for _, b in counted),
        unit="s",
        ratio=statistics.median(a / b for a, b in counted),
        target=target,
        note=note,
    )


def _time(function: Callable[[], object], prepare: Callable[[], object]) -> float:
    prepare()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(title: str, facts: dict[str, object], results: Sequence[Result]) -> int:
    """Print a table and, as the last line, the same as JSON; returns the rows not reached."""
    print(f"{title}\n" + "".join(f"  {key}: {value}\n" for key, value in facts.items()))
    header = ("what", "ours", "reference", "ratio", "target", "reached")
    rows = [header]
    for r in results:
        reference = "-" if r.reference is None else f"{r.reference:.3f} {r.unit}"
        ours = f"{r.ours:.3f} {r.unit}"
        target, verdict = "-", "-"
        if r.target is not None:
            target, verdict = f"{r.target:.2f}", "yes" if r.reached else "no"
        rows.append((r.what, ours, reference, f"{r.ratio:.2f}", target, verdict))
    widths = [max(len(row[n]) for row in rows) for n in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print()
    for r in results:
        print(f"{r.what}: {r.note}")
    print(json.dumps({"title": title, **facts, "results": [asdict(r) for r in results]}))
    return sum(not r.reached for r in results)
