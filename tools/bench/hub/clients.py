"""A local Hub, and client processes that share no caches with each other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casweights.testing.hub import LocalHubProcess
from tools.bench.hub.probe import Probe, Spent
from tools.bench.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

_JOBS = "tools.bench.hub.jobs"
_MEMORY = Path("/dev/shm")


class Clients:
    """Starts client processes.

    Args:
        hub: The Hub that they use.
        work: A directory for the folders of each.
    """

    def __init__(self, hub: LocalHubProcess, work: Path) -> None:
        self._hub = hub
        self.work = work
        self._count = 0

    def run(self, job: str, home: Path | None = None, **options: Any) -> Any:
        """Run a job in a new process; return its result.

        Args:
            job: Module of this folder and function, as for `jobs`.
            home: Folder of the caches of huggingface_hub and casweights; by default a new one.
            options: Options of the job.
        """
        own = self._new_home() if home is None else home
        environment = self._environment(own)
        os.sync()  # so that a job does not pay for the writes of an earlier one
        command = [sys.executable, "-m", _JOBS, job, json.dumps(options, default=_plain)]
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        if home is None:
            shutil.rmtree(own, ignore_errors=True)
        return json.loads(done.stdout.splitlines()[-1])

    def start(self, program: str, role: str, **options: Any) -> Worker:
        """Start a process that runs one command after another, with a home of its own.

        Args:
            program: Module that the process runs.
            role: Role of the process, which the module defines.
            options: Options of the role.
        """
        command = [sys.executable, "-m", program, role, json.dumps(options, default=_plain)]
        return Worker(command, self._environment(self._new_home()))

    @property
    def probe(self) -> Probe:
        """A probe of the Hub."""
        return Probe(self._hub.url)

    def spent(self, job: str, home: Path | None = None, **options: Any) -> Spent:
        """Run a job that measures one operation; return its costs."""
        return Spent.parse(self.run(job, home, **options))

    def _new_home(self) -> Path:
        self._count += 1
        return self.work / f"home-{self._count}"

    def _environment(self, home: Path) -> dict[str, str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGG"))
        }
        return environment | {
            "HF_ENDPOINT": self._hub.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


@contextmanager
def fresh_hub(work: Path) -> Iterator[Clients]:
    """Start an empty Hub below a directory; yield its clients; delete everything at the end."""
    with (
        tempfile.TemporaryDirectory(dir=work, prefix="hub-") as folder,
        LocalHubProcess(Path(folder) / "hub") as hub,
    ):
        yield Clients(hub, Path(folder))


@contextmanager
def scratch_folder(work: Path, size: int) -> Iterator[Path]:
    """Yield a directory for a few files of this number of bytes, in memory if they fit."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 * size
    with tempfile.TemporaryDirectory(dir=_MEMORY if roomy else work) as folder:
        yield Path(folder)


def note_progress(text: str) -> None:
    """Print what is being measured, to standard error."""
    print(f"  {text}", file=sys.stderr, flush=True)
