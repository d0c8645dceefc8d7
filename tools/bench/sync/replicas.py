"""The row on replicas: costs of a trainer and of each replica if there are several."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tools.bench.harness import Result, compared
from tools.bench.hub.clients import note_progress
from tools.bench.hub.probe import UNSHAPED, Line, Spent
from tools.bench.hub.report import MB
from tools.bench.sync.steps import Run, fresh_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tools.bench.hub.report import Report


def row_replicas(report: Report, work: Path, size: int, rounds: int, counts: Sequence[int]) -> None:
    """Add rows on the costs of a trainer and of each replica, with several replicas."""
    line = Line(name="50 ms", latency=0.05)
    with fresh_run(work, size) as run:
        run.publish(UNSHAPED)
        found = {}
        for count in counts:
            note_progress(f"replicas: {count}")
            run.probe.set(UNSHAPED)
            run.add_replicas(count)
            found[count] = _Crowd(run, line, rounds)
    alone = found.pop(counts[0])
    report.add(_spread("bytes of each replica, 1", alone))
    for count, crowd in found.items():
        for result in _rows(count, crowd, alone):
            report.add(result)


def _rows(count: int, crowd: _Crowd, alone: _Crowd) -> Iterator[Result]:
    for what, unit, ours, reference, target in _costs(crowd, alone):
        yield compared(
            f"trainer with {count} replicas: {what}",
            ours,
            reference,
            unit,
            target=target,
            note="reference: one replica, in the same run. Every replica is a process, and all "
            "processes share the processors with trainer and Hub",
        )
    yield _spread(f"bytes of each replica, {count}", crowd)
    yield compared(
        f"{count} replicas at once: time until the last has applied it",
        crowd.together,
        alone.together,
        "s",
        note=f"from the moment at which the step is durable, at 50 ms; requests: trainer "
        f"{crowd.writer.routes}; each replica {crowd.readers[0].routes}",
    )


class _Crowd:
    """Medians of steps with several replicas.

    Attributes:
        writer: Costs of publishing while the replicas are idle.
        polled: The same while they poll; requests and bytes include those of the replicas.
        readers: Costs of each replica, one after another.
        together: Seconds until all replicas have a step that is announced to all at once.
    """

    def __init__(self, run: Run, line: Line, rounds: int) -> None:
        written, polled, together = [], [], []
        for _ in range(rounds):
            published = run.publish(line)
            written.append(Spent.parse(published["spent"]))
            self.readers = [
                Spent.parse(replica.ask("sync", to=published["snapshot"])["spent"])
                for replica in run.replicas
            ]
            published = run.publish(line)
            for replica in run.replicas:
                replica.tell("sync", to=published["snapshot"])
            found = [replica.answer() for replica in run.replicas]
            together.append(max(Spent.parse(x["spent"]).seconds for x in found))
            polled.append(self._publish_polled(run, line))
            run.probe.set(UNSHAPED)
            run.check()
        self.writer = _median(written)
        self.polled = _median(polled)
        self.together = statistics.median(together)

    def _publish_polled(self, run: Run, line: Line) -> Spent:
        run.probe.set(line)
        for replica in run.replicas:
            replica.ask("follow")
        published = run.publish(line)
        for replica in run.replicas:
            replica.ask("followed", snapshot=published["snapshot"])
        for replica in run.replicas:
            replica.ask("stop")
        return Spent.parse(published["spent"])


def _costs(crowd: _Crowd, alone: _Crowd) -> list[tuple[str, str, float, float, float]]:
    """Return the costs of publishing: name, unit, with many replicas, with one, and the target."""
    many, one = crowd.writer, alone.writer
    polled = crowd.polled.seconds, alone.polled.seconds
    return [
        ("requests", "requests", many.total, one.total, 1.0),
        ("bytes", "MB", many.sent / MB, one.sent / MB, 1.01),
        ("seconds until durable", "s", many.seconds, one.seconds, 1.1),
        ("the same while they poll", "s", *polled, 1.1),
    ]


def _median(values: Sequence[Spent]) -> Spent:
    """Return the costs with the median time."""
    return sorted(values, key=lambda spent: spent.seconds)[len(values) // 2]


def _spread(what: str, crowd: _Crowd) -> Result:
    nbytes = [spent.received for spent in crowd.readers]
    return compared(
        what,
        max(nbytes) / MB,
        min(nbytes) / MB,
        "MB",
        target=1.01,
        note="one replica after another; the largest number, with the smallest as reference",
    )
