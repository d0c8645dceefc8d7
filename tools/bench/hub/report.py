"""Rows of the reports on buckets and sync: medians, ratios, and the limit of each operation."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tools.bench.harness import Result, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.bench.hub.probe import Line, Spent

    Pairs = Sequence[tuple[Spent, Spent]]

MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The time of an operation, and the least time that the network and the memory allow.

    Attributes:
        what: Name of the operation.
        seconds: Its time.
        moved: Number of bytes in the direction that carried more.
        requests: Number of requests.
        trips: Number of sequential round trips, measured with a tiny model.
        processor: Processor time of the client, in seconds.
        limit: The least time: the largest of those of the bytes, the round trips and the memory.
        limited_by: Which of them it is, and the client's processors if they were mostly busy.
    """

    what: str
    seconds: float
    moved: float
    requests: float
    trips: float
    processor: float
    limit: float
    limited_by: str


@dataclass(slots=True)
class Report:
    """Collects and prints rows.

    Attributes:
        trips: Number of sequential round trips, by operation.
        cores: Number of processors of this machine.
        results: Rows that compare casweights with a reference.
        limits: Rows on the limits of operations.
    """

    trips: dict[str, float]
    cores: int
    results: list[Result] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)

    def compare(
        self,
        what: str,
        pairs: Pairs,
        line: Line,
        kinds: tuple[str, str],
        *,
        time: float | None,
        fewer: float | None = None,
        sent: bool = False,
        note: str,
    ) -> None:
        """Add rows on time and bytes of casweights and a reference, and on their limits.

        Args:
            what: Name of the operation.
            pairs: Costs of casweights and of the reference, measured alternately.
            line: The network.
            kinds: Keys of the two operations in `trips`.
            time: Upper limit of the ratio of times; None for no limit.
            fewer: Lower limit of the ratio of bytes, reference to casweights.
            sent: Whether to count the bytes that the Hub received instead of those it sent.
            note: Explanation of the reference.
        """
        name = f"{what}, {line.name}"
        times = [(ours.seconds, reference.seconds) for ours, reference in pairs]
        ratio = statistics.median(a / b for a, b in times)
        self._row(f"{name}: time", "s", times, ratio, time, note)
        moved = [
            tuple((spent.sent if sent else spent.received) / MB for spent in pair) for pair in pairs
        ]
        ratio = statistics.median(b / a for a, b in moved)
        self._row(f"{name}: times fewer bytes", "MB", moved, ratio, fewer, note, at_least=True)
        for side, kind, values in zip(
            ("ours", "reference"), kinds, zip(*pairs, strict=True), strict=True
        ):
            self.limit(f"{name}: {side}", values, line, self.trips.get(kind, 0.0))

    def add(self, result: Result) -> None:
        """Add a row."""
        self.results.append(result)

    def make(self, row: Callable[[Report], None]) -> None:
        """Run a function that adds rows, and print the rows that it added."""
        results, limits = len(self.results), len(self.limits)
        row(self)
        if len(self.results) > results:
            table(self.results[results:])
        if len(self.limits) > limits:
            self.print_limits(limits)

    def to_json(self) -> dict[str, Any]:
        """Return everything in the report except its rows, as values for JSON."""
        return {"trips": self.trips, "limits": [asdict(limit) for limit in self.limits]}

    def print_limits(self, first: int = 0) -> None:
        """Print the table of limits, beginning with the limit of this number."""
        rows = [
            (
                "operation",
                "time",
                "moved",
                "requests",
                "trips",
                "CPU",
                "limit",
                "bound by",
                "x limit",
            )
        ]
        for x in self.limits[first:]:
            distance = f"{x.seconds / x.limit:.2f}" if x.limit else "-"
            rows.append(
                (
                    x.what,
                    f"{x.seconds:.3f} s",
                    f"{x.moved / MB:.2f} MB",
                    f"{x.requests:.0f}",
                    f"{x.trips:.1f}",
                    f"{x.processor:.2f} s",
                    f"{x.limit:.3f} s",
                    x.limited_by,
                    distance,
                )
            )
        widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        print(flush=True)

    def _row(
        self,
        what: str,
        unit: str,
        pairs: Sequence[tuple[float, ...]],
        ratio: float,
        target: float | None,
        note: str,
        *,
        at_least: bool = False,
    ) -> None:
        ours, reference = zip(*pairs, strict=True)
        self.results.append(
            Result(
                what=what,
                ours=statistics.median(ours),
                reference=statistics.median(reference),
                unit=unit,
                ratio=ratio,
                target=target,
                note=note,
                at_least=at_least,
            )
        )

    def limit(
        self,
        what: str,
        values: Sequence[Spent],
        line: Line,
        trips: float,
        memory: float = 0.0,
    ) -> None:
        """Add a row on the limit of an operation.

        Args:
            what: Name of the operation.
            values: Its costs in each round.
            line: The network.
            trips: Number of sequential round trips.
            memory: Seconds that the memory needs to move the bytes of the operation.
        """
        seconds = statistics.median(spent.seconds for spent in values)
        moved = statistics.median(spent.moved for spent in values)
        processor = statistics.median(spent.processor for spent in values)
        limits = {
            "bytes": moved / line.bandwidth if line.bandwidth else 0.0,
            "round trips": trips * line.latency,
            "memory": memory,
        }
        by, limit = max(limits.items(), key=itemgetter(1))
        busy = processor > 0.5 * seconds * (self.cores if limit else 1)
        causes = [by] * bool(limit) + ["client CPU"] * busy
        self.limits.append(
            Limit(
                what=what,
                seconds=seconds,
                moved=moved,
                requests=statistics.median(spent.total for spent in values),
                trips=trips,
                processor=processor,
                limit=limit,
                limited_by=", ".join(causes) or "-",
            )
        )


def describe(line: Line) -> str:
    """Return a description of a network."""
    rate = f"{line.bandwidth / 1e6:g} MB/s" if line.bandwidth else "no limit of bandwidth"
    return f"{line.name}: {line.latency * 1000:.0f} ms per request, {rate}"
