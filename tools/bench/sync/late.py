"""The row on late joiners: a replica without weights joins a long branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.bench.harness import Result, compared
from tools.bench.hub.clients import note_progress
from tools.bench.hub.model import MiB
from tools.bench.hub.probe import UNSHAPED, Line, Spent
from tools.bench.hub.report import MB
from tools.bench.sync.steps import BUCKET, SHARE, URL, Run, fresh_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.hub.report import Report

_PLAIN = "plain.safetensors"  # the plain file, as named by the trainer's process
_HIDDEN = 1024  # width of the model's layers, so that its tensors are not tiny


def row_join(report: Report, work: Path, size: int, behind: int, lines: Sequence[Line]) -> None:
    """Add the row on a replica that joins a long branch; the reference is the plain file."""
    with fresh_run(work, size, begin=False) as run:
        note_progress(f"a branch of {behind} steps")
        late = _Late(run, behind)
        for line in (UNSHAPED, *(line for line in lines if line.bandwidth)):
            note_progress(f"joining, {line.name}")
            late.join(line)
            late.fetch(line)
            report.add(late.time(line))
    for result in late.sizes():
        report.add(result)


class _Late:
    """A long branch, and replicas that join it.

    Call `join` and `fetch` to measure, and then `time` and `sizes` for the rows.

    Args:
        run: A run without a trainer.
        behind: Number of steps of the branch.
    """

    def __init__(self, run: Run, behind: int) -> None:
        self._run, self._behind = run, behind
        self._folder = run.clients.work / "plain"
        self._folder.mkdir()
        self._builder = run.start("trainer", url=run.clients.work / "local", hidden=_HIDDEN)
        self._built = self._builder.ask("build", steps=behind, share=SHARE, target=URL)
        self._builder.ask("upload_plain")

    def join(self, line: Line) -> None:
        """Let a new replica get the latest version, and check it."""
        self._run.probe.set(line)
        replica = self._run.start("replica", hidden=_HIDDEN)
        begun: dict[str, Any] = replica.ask("begin")
        self._run.probe.set(UNSHAPED)
        self._joined = Spent.parse(begun["spent"])
        self._frames = begun["stats"]["fetched_bytes"]
        if replica.ask("digest") != self._builder.ask("digest"):
            raise AssertionError("a late joiner differs from the trainer")

    def fetch(self, line: Line) -> None:
        """Download the plain file."""
        self._fetched = self._run.clients.spent(
            "transfers.download",
            bucket=BUCKET,
            prefix="",
            names=[_PLAIN],
            out=self._folder,
            line=line,
        )
        (self._folder / _PLAIN).unlink()

    def time(self, line: Line) -> Result:
        """Return the row on the times of the last `join` and `fetch`."""
        return compared(
            f"joining {self._behind} steps late, {line.name}: time",
            self._joined.seconds,
            self._fetched.seconds,
            "s",
            note="a new process without weights; reference: "
            f"HfApi.download_bucket_files of the plain file; {self._joined.routes}",
        )

    def sizes(self) -> list[Result]:
        """Return the rows on bytes."""
        references = (
            ("the plain file", self._fetched.received, "of the plain file, downloaded by hf_xet"),
            ("the first version", self._built["first"], "of the first version's frames"),
        )
        return [
            compared(
                f"joining {self._behind} steps late: bytes, against {what}",
                self._joined.received / MB,
                reference / MB,
                "MB",
                target=1.5,
                note=f"reference: bytes {note}; {self._built['nbytes'] / MiB:.0f} MiB of bf16, "
                "each step published to a directory and pushed; frames are "
                f"{self._frames / MB:.3f} MB of the bytes fetched",
            )
            for what, reference, note in references
        ]
