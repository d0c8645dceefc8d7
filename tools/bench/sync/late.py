"""The row on joining late: a replica with nothing and a branch that is long already."""

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

_PLAIN = "plain.safetensors"  # what the trainer's process calls the plain file
_HIDDEN = 1024  # of the model that replicas join late, so that tensors are not tiny


def row_join(report: Report, work: Path, size: int, behind: int, lines: Sequence[Line]) -> None:
    """A replica with nothing joins a long branch; reference: the plain file."""
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

    `join` and then `fetch` measure what the rows are made of.

    Args:
        run: Without a trainer yet.
        behind: Steps of the branch.
    """

    def __init__(self, run: Run, behind: int) -> None:
        self._run, self._behind = run, behind
        self._folder = run.clients.work / "plain"
        self._folder.mkdir()
        self._builder = run.start("trainer", url=run.clients.work / "local", hidden=_HIDDEN)
        self._built = self._builder.ask("build", steps=behind, share=SHARE, target=URL)
        self._builder.ask("upload_plain")

    def join(self, line: Line) -> None:
        """Have a new replica get the newest version, and compare it."""
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
        """The row of the times that both took last."""
        return compared(
            f"joining {self._behind} steps late, {line.name}: time",
            self._joined.seconds,
            self._fetched.seconds,
            "s",
            note="a fresh process with no weights; reference: "
            f"HfApi.download_bucket_files of the plain file; {self._joined.routes}",
        )

    def sizes(self) -> list[Result]:
        """The rows of bytes."""
        references = (
            ("plain bytes", self._fetched.received, "of the plain file, downloaded by hf_xet"),
            ("first version", self._built["first"], "that the first version's frames take"),
        )
        return [
            compared(
                f"joining {self._behind} steps late: bytes to {what}",
                self._joined.received / MB,
                reference / MB,
                "MB",
                target=1.5,
                note=f"reference: bytes {note}; {self._built['nbytes'] / MiB:.0f} MiB of bf16, "
                "each step published to a directory and pushed; of frames it fetched "
                f"{self._frames / MB:.3f} MB",
            )
            for what, reference, note in references
        ]
