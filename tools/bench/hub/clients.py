"""A local Hub, and client processes that know nothing of one another."""

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
        hub: The Hub they talk to.
        work: A directory for their own folders.
    """

    def __init__(self, hub: LocalHubProcess, work: Path) -> None:
        self._hub = hub
        self.work = work
        self._count = 0

    def run(self, job: str, home: Path | None = None, **options: Any) -> Any:
        """Run a job in a fresh process; returns its result.

        Args:
            job: A module of this folder and a function of it; see `jobs`.
            home: What huggingface_hub keeps, for a process that is to find it; by default nothing.
            options: Its options.
        """
        own = self._new_home() if home is None else home
        environment = self._environment(own)
        os.sync()  # so that nobody pays for what another one wrote
        command = [sys.executable, "-m", _JOBS, job, json.dumps(options, default=_plain)]
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        if home is None:
            shutil.rmtree(own, ignore_errors=True)
        return json.loads(done.stdout.splitlines()[-1])

    def start(self, program: str, role: str, **options: Any) -> Worker:
        """Start a process that takes one command after the other, with a home of its own.

        Args:
            program: The module that it runs.
            role: What it is to be.
            options: Its options.
        """
        command = [sys.executable, "-m", program, role, json.dumps(options, default=_plain)]
        return Worker(command, self._environment(self._new_home()))

    @property
    def probe(self) -> Probe:
        """For who sets and asks the Hub."""
        return Probe(self._hub.url)

    def spent(self, job: str, home: Path | None = None, **options: Any) -> Spent:
        """The same for a job that measures one operation."""
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
    """An empty Hub below a directory, and clients for it; all of it is removed at the end."""
    with (
        tempfile.TemporaryDirectory(dir=work, prefix="hub-") as folder,
        LocalHubProcess(Path(folder) / "hub") as hub,
    ):
        yield Clients(hub, Path(folder))


@contextmanager
def scratch_folder(work: Path, size: int) -> Iterator[Path]:
    """A directory for some files of so many bytes: in memory, if they fit."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 4 * size
    with tempfile.TemporaryDirectory(dir=_MEMORY if roomy else work) as folder:
        yield Path(folder)


def note_progress(text: str) -> None:
    """Say what is being measured."""
    print(f"  {text}", file=sys.stderr, flush=True)
