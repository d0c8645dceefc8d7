"""The rows on whole models: first versions, steps, checkouts, requests and memory."""

from __future__ import annotations

import filecmp
import shutil
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from tools.bench.harness import Result, measured
from tools.bench.hub.clients import fresh_hub, note_progress, scratch_folder
from tools.bench.hub.model import MiB, Model, write_large
from tools.bench.hub.probe import UNSHAPED, Line, Spent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tools.bench.hub.clients import Clients
    from tools.bench.hub.report import Pairs, Report

BUCKET = "me/plain"
URL = "hf://buckets/me/weights/run"
SHARE = 0.01
MEMORY_LIMIT = 512 * MiB
_TINY = 2 * MiB
_FAR = 0.2  # seconds of a round trip, far more than a tiny model takes otherwise

_seeds = count(1)  # a new seed for each model, so that the storage has none of its data


class Rows:
    """The measurements.

    Args:
        work: A directory with space for several models.
        size: Bytes of the model.
        rounds: Number of pairs of a measurement.
        lines: The networks.
    """

    def __init__(self, work: Path, size: int, rounds: int, lines: Sequence[Line]) -> None:
        self.work = work
        self.size = size
        self.rounds = rounds
        self.lines = lines

    # --- What is measured.

    def pushes(self, line: Line) -> Iterator[tuple[Spent, Spent]]:
        """Yield pairs of costs: commit a first version; upload the same files."""
        for n in range(self.rounds):
            note_progress(f"push, {line.name}: {n}")
            with fresh_hub(self.work) as clients:
                directory = clients.work / "model"
                model = Model(self.size, next(_seeds))
                model.make()
                model.write_files(directory)
                del model
                options: dict[str, Any] = {"model": directory, "line": line}
                ours = clients.spent("transfers.push", url=URL, **options)
                yield ours, clients.spent("transfers.push_files", bucket=BUCKET, **options)

    def steps(self) -> list[dict[str, Any]]:
        """Run steps of a trainer; return the results of the job `trainer.train`."""
        with scratch_folder(self.work, self.size) as scratch, fresh_hub(self.work) as clients:
            found: list[dict[str, Any]] = clients.run(
                "trainer.train",
                url=URL,
                bucket=BUCKET,
                scratch=scratch,
                size=self.size,
                seed=next(_seeds),
                share=SHARE,
                rounds=self.rounds,
                lines=list(self.lines),
            )
        return found

    def checkouts(self) -> Iterator[tuple[Line, dict[str, Spent]]]:
        """Yield, for each round, the costs of getting two versions in each way, by its name."""
        with fresh_hub(self.work) as clients:
            first, second = clients.work / "v0", clients.work / "v1"
            model = Model(self.size, next(_seeds))
            model.make()
            model.write_files(first)
            model.step(SHARE)
            model.write_files(second)
            del model
            clients.run("transfers.prepare", url=URL, bucket=BUCKET, models=[first, second])
            getter = _Getter(clients, first, second)
            getter.prepare()
            for line in self.lines:
                for n in range(self.rounds):
                    note_progress(f"checkout, {line.name}: {n}")
                    yield line, getter.round(line)

    def requests(self, line: Line) -> list[dict[str, Any]]:
        """Run steps of a trainer and a replica; return the results of the job `trainer.follow`."""
        with fresh_hub(self.work) as clients:
            found: list[dict[str, Any]] = clients.run(
                "trainer.follow",
                url=URL,
                size=self.size,
                seed=next(_seeds),
                share=SHARE,
                rounds=self.rounds,
                line=line,
            )
        return found

    # --- Rows.

    def row_push(self, report: Report) -> None:
        """Add row 1: a first version."""
        for line in self.lines:
            report.compare(
                "1 first version",
                list(self.pushes(line)),
                line,
                ("push", "push_files"),
                time=1.1,
                sent=True,
                note="commit of a directory to an existing store; reference: "
                "HfApi.batch_bucket_files of the same files",
            )

    def row_step(self, report: Report) -> None:
        """Add row 2: a step."""
        found = self.steps()
        for line in self.lines:
            steps = [step for step in found if step["line"] == line.name]
            report.compare(
                "2 step, against the whole file",
                _pairs(steps, "step", "full"),
                line,
                ("step", "full"),
                time=1 / 6,
                fewer=100,
                sent=True,
                note="commit of a state dict after a step that changes 1 % of its elements, by the "
                "process that committed the previous one; reference: safetensors' save_file to "
                "memory and HfApi.batch_bucket_files",
            )
            report.compare(
                "2 step, against a patch",
                _pairs(steps, "step", "patch"),
                line,
                ("step", "patch"),
                time=0.6 if line.bandwidth and line.bandwidth < 100e6 else 0.8,
                fewer=3,
                sent=True,
                note="the same commit; reference: compare with the weights before, write TRL's "
                "third patch format (gaps in 16 bits, new values) to memory, and upload that",
            )

    def row_checkout(self, report: Report) -> None:
        """Add rows 3 and 4, which are measured together because they share the reference."""
        rounds: dict[str, list[dict[str, Spent]]] = {line.name: [] for line in self.lines}
        for line, found in self.checkouts():
            rounds[line.name].append(found)
        for line in self.lines:
            _compare_first(report, line, rounds[line.name])
            _compare_next(report, line, rounds[line.name])

    def row_requests(self, report: Report) -> None:
        """Add row 5: requests of a step."""
        line = Line(name="50 ms", latency=0.05)
        found = self.requests(line)
        writers = [Spent.parse(step["writer"]) for step in found]
        report.add(
            measured(
                "5 upload calls of a step",
                max(spent.requests.get("batch", 0) for spent in writers),
                "calls",
                target=2,
                note=f"requests of the trainer: {_spread(writers)}",
            )
        )
        followers = [Spent.parse(step["follower"]) for step in found]
        longest = max((step["chain"] for step in found), key=len)
        report.add(
            measured(
                "5 sequential reads of a follower",
                len(longest),
                "reads",
                target=3,
                note=f"the reads: {'; '.join(longest)}. Requests: {_spread(followers)}; "
                f"{followers[-1].seconds:.2f} s at 50 ms",
            )
        )

    def row_memory(self, report: Report, size: int) -> None:
        """Add row 7: peak memory."""
        with fresh_hub(self.work) as clients:
            directory, out = clients.work / "model", clients.work / "out"
            note_progress("memory: a model")
            write_large(directory, size, next(_seeds))
            names = sorted(path.name for path in directory.iterdir())
            options = {"line": UNSHAPED, "model": directory, "out": out, "names": names}
            for ours, plain in (("push", "push_files"), ("checkout", "download")):
                what = "commit" if ours == "push" else ours
                note_progress(f"memory: {what}")
                peaks = [self._peak(clients, job, options) for job in (ours, plain)]
                report.add(_memory(f"7 peak memory, {what} of {size // MiB} MiB", *peaks))

    def _peak(self, clients: Clients, job: str, options: dict[str, Any]) -> float:
        """Return the peak memory of a job, in bytes."""
        where: dict[str, Any] = {"url": URL, "ref": "main", "bucket": BUCKET, "prefix": ""}
        peak: float = clients.run("transfers.peak", measured=job, **where, **options)
        shutil.rmtree(options["out"], ignore_errors=True)
        return peak


def _compare_first(report: Report, line: Line, rounds: Sequence[dict[str, Spent]]) -> None:
    """Add rows 3: checkouts by a new process."""
    for kind, what in (("cold", "without disk cache"), ("filling", "filling disk cache")):
        report.compare(
            f"3 checkout, {what}",
            [(found[kind], found["plain"]) for found in rounds],
            line,
            ("cold", "plain"),
            time=1.15,
            note="a new process and an empty directory; reference: "
            "HfApi.download_bucket_files of the plain files to an empty directory",
        )


def _compare_next(report: Report, line: Line, rounds: Sequence[dict[str, Spent]]) -> None:
    """Add rows 4: checkouts of the next version."""
    target = None if line.bandwidth and line.bandwidth < 100e6 else 1 / 5
    for kind, what in (("next", "over the previous one"), ("cached", "from disk cache")):
        report.compare(
            f"4 next version, {what}",
            [(found[kind], found["plain_next"]) for found in rounds],
            line,
            ("next", "plain"),
            time=target if line.latency else 1 / 2,
            fewer=100,
            note="a new process: without a disk cache, and a directory with the previous version; "
            "or with a disk cache that has the previous version, and an empty directory. "
            "Reference: HfApi.download_bucket_files over the files of the previous version",
        )


def _memory(what: str, ours: float, reference: float) -> Result:
    return Result(
        what=what,
        ours=ours / MiB,
        reference=reference / MiB,
        unit="MiB",
        ratio=ours / MEMORY_LIMIT,
        target=1.0,
        note="memory beyond the imports; the ratio is relative to the limit of 512 MiB. "
        "Reference: hf_xet with the plain files",
    )


class _Getter:
    """Gets two versions in each way, with and without a disk cache and an earlier version."""

    def __init__(self, clients: Clients, first: Path, second: Path) -> None:
        self._clients = clients
        self._first, self._second = first, second
        self._names = [path.name for path in sorted(first.iterdir())]
        self._out, self._home = clients.work / "out", clients.work / "cache"
        self._warm = clients.work / "warm-cache"

    def prepare(self) -> None:
        """Fill a disk cache with the first version."""
        options = {"url": URL, "ref": "v0", "out": self._out, "line": UNSHAPED, "cached": True}
        self._clients.run("transfers.checkout", self._warm, **options)
        shutil.rmtree(self._out)

    def round(self, line: Line) -> dict[str, Spent]:
        """Get the versions in each way over a network; return the costs."""
        return {
            "cold": self._checkout("v0", line),
            "plain": self._download("v0", line),
            "filling": self._checkout("v0", line, home=self._home),
            "next": self._checkout("main", line, before=True),
            "plain_next": self._download("v1", line, before=True),
            "cached": self._checkout("main", line, home=self._home, warm=True),
        }

    def _checkout(
        self,
        ref: str,
        line: Line,
        *,
        before: bool = False,
        home: Path | None = None,
        warm: bool = False,
    ) -> Spent:
        if warm:
            shutil.copytree(self._warm, self._home)
        with self._directory(ref, before=before):
            options: dict[str, Any] = {"url": URL, "ref": ref, "out": self._out, "line": line}
            spent = self._clients.spent("transfers.checkout", home, cached=bool(home), **options)
        if home:
            shutil.rmtree(home)
        return spent

    def _download(self, version: str, line: Line, *, before: bool = False) -> Spent:
        with self._directory(version, before=before):
            return self._clients.spent(
                "transfers.download",
                bucket=BUCKET,
                prefix=f"{version}/",
                names=self._names,
                out=self._out,
                line=line,
            )

    @contextmanager
    def _directory(self, version: str, *, before: bool) -> Iterator[None]:
        """Prepare the directory for a version; after the block, check and delete it."""
        if before:
            shutil.copytree(self._first, self._out)
        yield
        expected = self._first if version == "v0" else self._second
        _, wrong, failed = filecmp.cmpfiles(expected, self._out, self._names, shallow=False)
        if wrong or failed:
            raise AssertionError(f"{version} came back changed: {wrong + failed}")
        shutil.rmtree(self._out)


def find_trips(work: Path) -> dict[str, float]:
    """Return the number of sequential round trips of each operation, from a tiny model."""
    near, far = UNSHAPED, Line(name="far", latency=_FAR)
    tiny = Rows(work, _TINY, 1, [near, far])
    times: dict[str, dict[str, float]] = {}

    def note(line: str, found: dict[str, Spent]) -> None:
        for kind, spent in found.items():
            times.setdefault(kind, {})[line] = spent.seconds

    for line in tiny.lines:
        for ours, plain in tiny.pushes(line):
            note(line.name, {"push": ours, "push_files": plain})
    for step in tiny.steps():
        kinds = ("step", "full", "patch")
        note(step["line"], {kind: Spent.parse(step[kind]) for kind in kinds})
    for line, found in tiny.checkouts():
        note(line.name, found)
    return {
        kind: round(max(0.0, by_line[far.name] - by_line[near.name]) / _FAR, 1)
        for kind, by_line in times.items()
    }


def _pairs(steps: Sequence[dict[str, Any]], ours: str, reference: str) -> Pairs:
    return [(Spent.parse(step[ours]), Spent.parse(step[reference])) for step in steps]


def _spread(values: Sequence[Spent]) -> str:
    """Return the numbers of requests, by route, of each distinct case."""
    return " or ".join(dict.fromkeys(f"{spent.total} ({spent.routes})" for spent in values))
