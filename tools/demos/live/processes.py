"""Processes of the demo's third part, each like one on a machine of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casweights.system.closing import Closing
from tools.demos.common import check

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "hf_demo"
LAST_WORDS = 3000  # characters at the end of a log to show if its process fails

Event = dict[str, Any]


class Processes(Closing):
    """Processes, each with an empty home, a log and a journal.

    At the end of the context, running processes are killed.

    Args:
        url: URL of the Hub.
        folder: Folder of homes, logs and journals.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._read: dict[str, int] = defaultdict(int)

    def close(self) -> None:
        """Kill all processes that are still running."""
        for name in list(self._running):
            self.kill(name)

    def run(self, command: str, *arguments: str) -> str:
        """Run a command of this environment; return its output.

        Raises:
            MismatchError: The command failed.
        """
        done = subprocess.run(
            [Path(sys.executable).with_name(command), *arguments],
            env=self._environment(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        check(done.returncode == 0, f"{command} failed:\n{done.stdout}")
        return done.stdout.rstrip()

    def start(self, program: str, name: str, *arguments: str) -> None:
        """Start a module as a process with this name and an empty home."""
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", program, self._journal(name), *arguments],
                env=self._environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self, name: str) -> None:
        """End a process with SIGKILL, at any point of its work."""
        with self._running.pop(name) as process:
            process.kill()

    def have_ended(self) -> bool:
        """Return whether all processes have ended.

        Raises:
            MismatchError: A process failed.
        """
        statuses = {name: process.poll() for name, process in self._running.items()}
        for name, status in statuses.items():
            check(not status, f"{name} ended with exit status {status}:\n{self._last_words(name)}")
        return None not in statuses.values()

    def news(self) -> Iterator[tuple[str, Event]]:
        """Yield the events in the journals since the last call, with the name of the process."""
        for name in list(self._running):
            for line in self._new_lines(name):
                yield name, json.loads(line)

    def _new_lines(self, name: str) -> list[bytes]:
        journal = self._journal(name)
        if not journal.exists():
            return []
        with journal.open("rb") as file:
            file.seek(self._read[name])
            whole, _, _ = file.read().rpartition(b"\n")
        self._read[name] += len(whole) + 1 if whole else 0
        return whole.splitlines()

    def _environment(self, name: str) -> dict[str, str]:
        drop = ("HF_", "HUGGING", "CASWEIGHTS_")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(drop) and not name.lower().endswith("_proxy")
        }
        return kept | {
            "HF_ENDPOINT": self._url,
            "HF_HOME": tempfile.mkdtemp(prefix=f"{name}-", dir=self._folder),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",  # the check would query a package index
        }

    def _journal(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _last_words(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")[-LAST_WORDS:]
