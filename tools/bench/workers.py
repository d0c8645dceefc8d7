"""Worker processes that run commands one after another, each a line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Worker:
    """A process that runs `serve`. Each `tell` must be followed by one `answer`.

    Args:
        command: The command line of the process.
        environment: The environment variables of the process.
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
        """Call a method of the process's object, and return the result."""
        self.tell(method, **arguments)
        return self.answer()

    def tell(self, method: str, **arguments: Any) -> None:
        """Call a method without waiting for its result."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([method, arguments], default=str) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the result of a call by `tell`, and return it.

        Raises:
            RuntimeError: The process ended.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker process ended: {self._process.args!r}")
        return json.loads(line)

    def close(self) -> None:
        """End the process, after its current call."""
        with self._process:
            if self._process.stdin:
                self._process.stdin.close()


def serve(target: object) -> None:
    """Call the methods of `target` that arrive on standard input, until that is closed."""
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(target, method)(**arguments)), flush=True)
