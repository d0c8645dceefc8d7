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
        at_least: Whether `target` is what `ratio` must not fall below.
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
    """A row whose target is absolute: in its own unit."""
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
    """A row whose target is a share of the reference."""
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


class Clock:
    """Times by name, and processor times beside them, which a busy machine changes less."""

    def __init__(self) -> None:
        self._times: dict[str, list[tuple[float, float]]] = {}

    def time(self, name: str, function: Callable[..., object], *args: object) -> None:
        """Time one call."""
        wall, processor = time.perf_counter(), time.process_time()
        function(*args)
        spent = time.perf_counter() - wall, time.process_time() - processor
        self._times.setdefault(name, []).append(spent)

    def medians(self, name: str) -> tuple[float, float]:
        """Seconds, and seconds of processors, of a call."""
        wall, processor = zip(*self._times[name], strict=True)
        return statistics.median(wall), statistics.median(processor)


def median(
    function: Callable[[], object], rounds: int, prepare: Callable[[], object] = lambda: None
) -> float:
    """The median of the seconds of some calls after the first; `prepare` is not timed."""
    return statistics.median([_time(function, prepare) for _ in range(rounds + 1)][1:])


def _time(function: Callable[[], object], prepare: Callable[[], object]) -> float:
    prepare()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(title: str, facts: dict[str, object], results: Sequence[Result]) -> int:
    """Print a table and, as the last line, the same as JSON; returns the rows not reached."""
    head(title, facts)
    table(results)
    return conclude(title, facts, results)


def head(title: str, facts: dict[str, object]) -> None:
    """Print what a report is about."""
    print(f"{title}\n" + "".join(f"  {key}: {value}\n" for key, value in facts.items()), flush=True)


def table(results: Sequence[Result]) -> None:
    """Print rows, and below them their notes."""
    header = ("what", "ours", "reference", "ratio", "target", "reached")
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
    """Print everything as one line of JSON; returns the rows not reached."""
    print(json.dumps({"title": title, **facts, "results": [asdict(r) for r in results]}))
    return sum(not r.reached for r in results)
