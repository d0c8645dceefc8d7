"""The rows on bytes, times and pauses of steps, and the row on memory."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from tools.bench.encodings.entropy import bounds
from tools.bench.harness import compared, measured, paired
from tools.bench.hub.clients import note_progress
from tools.bench.hub.model import MiB, Model
from tools.bench.hub.probe import UNSHAPED, Line, Spent
from tools.bench.hub.report import MB
from tools.bench.sync.profile import print_profile
from tools.bench.sync.steps import SHARE, Pair, Run, Step, fresh_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.hub.report import Report
    from tools.bench.sync.steps import Way

_REPLICA_MEMORY = 256  # MiB
_TRAINER_MEMORY = 512  # MiB of data in flight, as for every commit
_LINE = 64  # bytes of a cache line, which the memory moves to change one element
_ENTROPY = 128 * MiB  # size of a model with the same entropy per element, to save time
_TIMES = {"unshaped": 0.8, "200 Mbit/s": 0.5}
_PAUSES = {"unshaped": 0.5, "200 Mbit/s": 0.2}
_V3 = (
    "reference: TRL's third patch format (gaps in 16 bits, new values): compare with the previous "
    "weights, encode, upload with HfApi.batch_bucket_files, announce the name, download with "
    "HfApi.download_bucket_files, and apply in place"
)
_FILES = (
    "reference: sizes of the patches' files, up and down; hf_xet compresses uploads, after which "
    "the positions of v1 are almost as small as the gaps of v3"
)


class Rows:
    """The measurements.

    Args:
        work: A directory with space for several models.
        size: Bytes of the model.
        rounds: Number of steps of a measurement.
        lines: The networks.
        numpy: Whether patches find changes with numpy instead of torch.
    """

    def __init__(
        self, work: Path, size: int, rounds: int, lines: Sequence[Line], *, numpy: bool
    ) -> None:
        self.work = work
        self.size = size
        self.rounds = rounds
        self.lines = lines
        self.numpy = numpy

    def row_step(self, report: Report) -> None:
        """Add rows on bytes, times, pauses and blocked times of steps, over all networks."""
        with fresh_run(self.work, self.size) as run:
            pair = Pair(run, numpy=self.numpy)
            first = [pair.step(UNSHAPED, "v1") for _ in range(self.rounds)]
            steps: list[Step] = []
            for line in self.lines:
                note_progress(f"steps, {line.name}")
                found = [pair.step(line) for _ in range(self.rounds)]
                self._times(report, line, found)
                self._limits(report, line, found, pair.nbytes)
                print_profile(line, found)
                note_progress(f"a replica that polls, {line.name}")
                self._polled(report, line, found, pair)
                steps += found
            self._bytes(report, steps, first)
            self._blocked(report, steps, run.trainer.ask("hash"))

    def row_memory(self, report: Report, size: int) -> None:
        """Add rows on memory in addition to the model."""
        for compare, copies in (("host", 1), ("cache", 0)):
            note_progress(f"memory: trainer, compare={compare}")
            with fresh_run(self.work, size, begin=False) as run:
                trainer = run.start("trainer", compare=compare)
                found = trainer.ask("peak", share=SHARE)
                for when in ("first", "steps"):
                    report.add(
                        measured(
                            f"memory of a trainer, compare={compare}, {when}",
                            (found[when] - copies * found["model"]) / MiB,
                            "MiB",
                            target=_TRAINER_MEMORY,
                            note="the peak without imports, without the model of "
                            f"{found['model'] / MiB:.0f} MiB, and without the publisher's "
                            f"{copies} copies of it; the limit is that of commits",
                        )
                    )
                if compare == "host":
                    self._replica_memory(report, run, trainer)

    def _replica_memory(self, report: Report, run: Run, trainer: Any) -> None:
        replica = run.start("replica")
        peaks = {"of a first version": replica.ask("peak")}
        for _ in range(2):
            trainer.ask("step", share=SHARE)
            snapshot = trainer.ask("publish")["snapshot"]
            peaks["of a step"] = replica.ask("peak_sync", to=snapshot)
        for what, peak in peaks.items():
            report.add(
                measured(
                    f"memory of a replica, sync {what}",
                    peak / MiB,
                    "MiB",
                    target=_REPLICA_MEMORY,
                    note="the peak without imports and weights; for a step, also without the "
                    "memory in use before it",
                )
            )

    # --- Parts of the row on steps.

    def _times(self, report: Report, line: Line, steps: Sequence[Step]) -> None:
        times = [(step.ours.seconds, step.patch.seconds) for step in steps]
        pauses = [(step.ours.pause, step.patch.pause) for step in steps]
        for what, pairs, targets in (
            ("publish to applied", times, _TIMES),
            ("pause", pauses, _PAUSES),
        ):
            report.add(
                paired(
                    f"{what}, {line.name}",
                    pairs,
                    "s",
                    target=targets.get(line.name),
                    note=f"the replica learns the ID; {_V3}. The pause lasts from the first to the "
                    "last possible change of the weights: in casweights, sync() after prefetch(); "
                    "in the reference, download and application",
                )
            )

    def _limits(self, report: Report, line: Line, steps: Sequence[Step], nbytes: int) -> None:
        copy = statistics.median(step.copy for step in steps)
        changed = statistics.median(step.changed for step in steps)
        apply = copy * min(1.0, changed * _LINE / nbytes)
        for what, parts, trips, memory in (
            ("publish", [step.ours.up for step in steps], "publish", copy),
            ("sync", [step.ours.down for step in steps], "sync", apply),
            ("patch, up", [step.patch.up for step in steps], "patch up", copy),
            ("patch, down", [step.patch.down for step in steps], "patch down", apply),
        ):
            report.limit(f"{what}, {line.name}", parts, line, report.trips.get(trips, 0.0), memory)
        pauses = [
            Spent(seconds=step.ours.pause, processor=0, sent=0, received=0, requests={})
            for step in steps
        ]
        report.limit(f"pause, {line.name}", pauses, line, 0.0, apply)

    def _polled(self, report: Report, line: Line, steps: Sequence[Step], pair: Pair) -> None:
        found = [pair.followed(line) for _ in range(self.rounds)]
        reference = statistics.median(step.patch.seconds for step in steps)
        report.add(
            compared(
                f"publish to applied, polling, {line.name}",
                statistics.median(seconds for seconds, _ in found),
                reference,
                "s",
                note=f"the replica polls with Subscriber.follow, with its defaults; {_V3}",
            )
        )

    def _bytes(self, report: Report, steps: Sequence[Step], first: Sequence[Step]) -> None:
        limit = _entropy(min(self.size, _ENTROPY))
        changed = statistics.median(step.changed for step in steps)
        note = (
            "bodies of all requests that the trainer sends and the replica receives; entropy of a "
            f"step, given exponents: {limit * changed / MB:.3f} MB each way, {limit:.3f} bytes per "
            f"changed element; casweights, up: {_up(steps)}"
        )
        for name, found, target in (("v3", steps, 1 / 4), ("v1", first, 1 / 6)):
            pairs = [(step.ours.nbytes / MB, step.patch.nbytes / MB) for step in found]
            report.add(
                paired(f"bytes of a step, against {name}", pairs, "MB", target=target, note=note)
            )
            sizes = [(step.ours.nbytes / MB, 2 * step.patch_size / MB) for step in found]
            report.add(paired(f"the same, against {name} as files", sizes, "MB", note=_FILES))
        ours = statistics.median(step.ours.nbytes for step in steps) / 2
        report.add(
            compared(
                "bytes of a step, one way, against their entropy",
                ours / MB,
                limit * changed / MB,
                "MB",
                note=note,
            )
        )

    def _blocked(self, report: Report, steps: Sequence[Step], hashing: float) -> None:
        report.add(
            paired(
                "time blocked in publish()",
                [(step.blocked, step.copy) for step in steps],
                "s",
                target=1.5,
                note="reference: one copy_ of the whole model in the same process; BLAKE3 of "
                f"the model with all processors takes {hashing:.3f} s",
            )
        )


def _up(steps: Sequence[Step]) -> str:
    ways: list[Way] = [step.ours for step in steps]
    up = statistics.median(way.up.sent for way in ways) / MB
    down = statistics.median(way.down.received for way in ways) / MB
    back = statistics.median(way.up.received + way.down.sent for way in ways) / MB
    return f"{up:.3f} MB, down: {down:.3f} MB, opposite direction: {back:.3f} MB"


def _entropy(size: int) -> float:
    """Return the entropy of a step given exponents, in bytes per changed element."""
    model = Model(size, 0)
    model.make()
    before = {name: part.copy() for name, part in model.state.items()}
    model.step(SHARE)
    found = bounds(before, model.state)
    return found.conditional / found.changed
