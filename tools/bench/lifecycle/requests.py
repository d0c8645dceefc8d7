"""Count requests to buckets with many and with few versions, and round trips of a publish."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from casweights.config import KiB
from tools.bench.harness import compared, measured
from tools.bench.hub.clients import note_progress
from tools.bench.hub.probe import Line, Spent
from tools.bench.hub.versions import count_requests
from tools.bench.sync.steps import fresh_run

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.harness import Result
    from tools.bench.sync.steps import Run

REQUESTS = 1.5
_OPERATIONS = {
    "fresh_commit": ("commit of a fresh process", 30),
    "checkout": ("checkout of a fresh process", 20),
}
_TRIPS = {"direct upload": (False, 3), "grants for uploads": (True, 3)}
_LATENCY = 1.0  # seconds: much more than a step takes on a busy machine
_SIZE = 400 * KiB  # so small that only round trips count


def row_requests(work: Path, count: int, few: int) -> list[Result]:
    """Count the requests of processes without any cache."""
    many, reference = count_requests(work, count), count_requests(work, few)
    results = []
    for name, (what, limit) in _OPERATIONS.items():
        ours, theirs = many[name][0], reference[name][0]
        note = f"{count:,} versions: {ours.routes}; {few}: {theirs.routes}"
        results += [
            compared(
                f"2 {what}: {count:,} versions to {few}",
                ours.total,
                theirs.total,
                "requests",
                target=REQUESTS,
                note=note,
            ),
            measured(f"2 {what}, in all", ours.total, "requests", target=limit, note=note),
        ]
    return results


def row_trips(work: Path, rounds: int) -> list[Result]:
    """Count the sequential round trips of a publish, which follow from its times."""
    with fresh_run(work, _SIZE) as run:
        return [_trips(run, what, rounds, *how) for what, how in _TRIPS.items()]


def _trips(run: Run, what: str, rounds: int, grants: bool, target: int) -> Result:
    lines = [Line(name=what, latency=far, upload_grants=grants) for far in (0.0, _LATENCY)]
    run.publish(lines[0])  # so that connections and tokens exist
    pairs = []
    for n in range(rounds):
        note_progress(f"publish, {what}: {n + 1} of {rounds}")
        pairs.append([run.publish(line) for line in lines])
    trips = [(_visible(far) - _visible(near)) / _LATENCY for near, far in pairs]
    total = [(_spent(far).seconds - _spent(near).seconds) / _LATENCY for near, far in pairs]
    calls = ", ".join(call for call, *_ in pairs[-1][1]["calls"])
    return measured(
        f"7 round trips of a publish until it is visible, {what}",
        round(statistics.median(trips)),
        "trips",
        target=target,
        note=f"additional seconds if each request takes {_LATENCY:g} s: "
        f"{min(trips):.2f} to {max(trips):.2f}, and {statistics.median(total):.2f} until it is "
        f"certain that the move counts. Requests: {_spent(pairs[-1][1]).routes}; calls of "
        f"the store: {calls}",
    )


def _visible(published: dict[str, Any]) -> float:
    """Return the seconds from the beginning of a publish to the end of its last write."""
    calls = published["calls"]
    return float(max(start + took for call, start, took in calls if call.startswith("write")))


def _spent(published: dict[str, Any]) -> Spent:
    return Spent.parse(published["spent"])
