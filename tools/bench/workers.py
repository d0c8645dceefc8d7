"""Processes that stay, and do one thing after the other as they are told, a line of JSON each."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Worker:
    """A process that runs `serve`.

    Args:
        command: What to run.
        environment: Its environment.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, method: str, **arguments: Any) -> Any:
        """Call a method of its object there; returns the result."""
        self.tell(method, **arguments)
        return self.answer()

    def tell(self, method: str, **arguments: Any) -> None:
        """Call a method, and go on."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([method, arguments], default=str) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The result of the call that was told.

        Raises:
            RuntimeError: The process ended instead.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process ended: {self._process.args!r}")
        return json.loads(line)

    def close(self) -> None:
        """Let it end."""
        with self._process:
            if self._process.stdin:
                self._process.stdin.close()


def serve(target: object) -> None:
    """Call the methods of an object that arrive on standard input, until it ends."""
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(target, method)(**arguments)), flush=True)
