"""Measures casweights against a reference, in pairs, and reports medians and targets.

A pair is one run of each, directly after one another, so that changes of the machine's load affect
both. The ratio of a row is the median of the ratios of its pairs.
"""

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
        what: Name of the row.
        ours: Median for casweights, in `unit`.
        reference: Median for the reference, in `unit`; None if the target is absolute.
        unit: Unit of both.
        ratio: Median of the pairs' ratios; for an absolute target, the figure that it limits.
        target: Upper limit of `ratio`; None if the row has none.
        note: Explanation of the reference and of what bounds the result.
        at_least: Whether `target` is a lower limit.
    """

    what: str
    ours: float
    reference: float | None
    unit: str
    ratio: float
    target: float | None
    note: str
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the row reaches its target."""
        if self.target is None:
            return True
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


def measured(
    what: str,
    value: float,
    unit: str,
    *,
    note: str,
    target: float | None = None,
    at_least: bool = False,
) -> Result:
    """Return a row with an absolute target, in the unit of the row."""
    return Result(
        what=what,
        ours=value,
        reference=None,
        unit=unit,
        ratio=value,
        target=target,
        note=note,
        at_least=at_least,
    )


def compared(
    what: str, ours: float, reference: float, unit: str, *, note: str, target: float | None = None
) -> Result:
    """Return a row whose target is a multiple of the reference."""
    return Result(
        what=what,
        ours=ours,
        reference=reference,
        unit=unit,
        ratio=ours / reference,
        target=target,
        note=note,
    )


def pair(
    what: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    *,
    target: float | None,
    note: str,
    prepare: Callable[[], object] = lambda: None,
    prepare_reference: Callable[[], object] | None = None,
    rounds: int = 5,
) -> Result:
    """Time two functions alternately.

    Args:
        what: Name of the row.
        ours: The function of casweights.
        reference: The function to compare it with.
        target: Upper limit of the ratio; None if the row has none.
        note: Explanation of the row, as in `Result`.
        prepare: Called before each timed call, untimed.
        prepare_reference: Called before the reference in place of `prepare`.
        rounds: Number of pairs that count, after one more that warms up.
    """
    times: list[tuple[float, float]] = []
    for n in range(rounds + 1):
        print(f"  {what}: round {n} of {rounds}", end="\r", file=sys.stderr)
        times.append((_time(ours, prepare), _time(reference, prepare_reference or prepare)))
    return paired(what, times[1:], "s", target=target, note=note)


def paired(
    what: str,
    pairs: Sequence[tuple[float, float]],
    unit: str,
    *,
    note: str,
    target: float | None = None,
) -> Result:
    """Return a row of values that were measured in pairs: ours, then the reference's."""
    return Result(
        what=what,
        ours=statistics.median(a for a, _ in pairs),
        reference=statistics.median(b for _, b in pairs),
        unit=unit,
        ratio=statistics.median(a / b for a, b in pairs),
        target=target,
        note=note,
    )


class Clock:
    """Measures wall-clock time and processor time, which a busy machine distorts less, by name."""

    def __init__(self) -> None:
        self._times: dict[str, list[tuple[float, float]]] = {}

    def time(self, name: str, function: Callable[..., object], *args: object) -> None:
        """Time one call."""
        wall, processor = time.perf_counter(), time.process_time()
        function(*args)
        spent = time.perf_counter() - wall, time.process_time() - processor
        self._times.setdefault(name, []).append(spent)

    def medians(self, name: str) -> tuple[float, float]:
        """Return the medians of wall-clock and processor seconds of the calls with this name."""
        wall, processor = zip(*self._times[name], strict=True)
        return statistics.median(wall), statistics.median(processor)


def median(
    function: Callable[[], object], rounds: int, prepare: Callable[[], object] = lambda: None
) -> float:
    """Return the median seconds of `rounds` calls after a first one; `prepare` is not timed."""
    return statistics.median([_time(function, prepare) for _ in range(rounds + 1)][1:])


def _time(function: Callable[[], object], prepare: Callable[[], object]) -> float:
    prepare()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(title: str, facts: dict[str, object], results: Sequence[Result]) -> int:
    """Print a table and then one line of JSON; return the number of rows that miss their target."""
    head(title, facts)
    table(results)
    return conclude(title, facts, results)


def head(title: str, facts: dict[str, object]) -> None:
    """Print the title and the facts of a report."""
    print(f"{title}\n" + "".join(f"  {key}: {value}\n" for key, value in facts.items()), flush=True)


def table(results: Sequence[Result]) -> None:
    """Print rows as a table, followed by their notes."""
    header = ("what", "casweights", "reference", "ratio", "target", "reached")
    rows = [header]
    for r in results:
        reference = "-" if r.reference is None else f"{r.reference:.3f} {r.unit}"
        ours = f"{r.ours:.3f} {r.unit}"
        target, verdict = "-", "-"
        if r.target is not None:
            sign = ">=" if r.at_least else "<="
            target, verdict = f"{sign} {r.target:.2f}", "yes" if r.reached else "no"
        rows.append((r.what, ours, reference, f"{r.ratio:.2f}", target, verdict))
    widths = [max(len(row[n]) for row in rows) for n in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print()
    notes: dict[str, list[str]] = {}
    for r in results:
        notes.setdefault(r.note, []).append(r.what)
    for note, whats in notes.items():
        print(f"{'; '.join(whats)}: {note}")
    print(flush=True)


def conclude(title: str, facts: dict[str, object], results: Sequence[Result]) -> int:
    """Print the report as one line of JSON; return the number of rows that miss their target."""
    print(json.dumps({"title": title, **facts, "results": [asdict(r) for r in results]}))
    return sum(not r.reached for r in results)
