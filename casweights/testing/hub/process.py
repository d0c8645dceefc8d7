"""A local Hub in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from casweights.testing.hub.conditions import Conditions, Counts
from casweights.testing.hub.server import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casweights.testing.hub.access import Right

_START_SECONDS = 30.0  # for a busy machine; imports take about one


class RemoteClock:
    """The clock of a Hub in another process, as `LocalHubProcess.clock` returns it.

    Args:
        ask: Sends a request, given by method, name and body, to the Hub.
    """

    def __init__(self, ask: Callable[[str, str, str], object]) -> None:
        self._ask = ask

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Raises:
            ValueError: `seconds` is negative.
        """
        self._ask("POST", "clock", json.dumps({"advance": seconds}))

    def hold(self) -> None:
        """Stop the clock; from now on only `advance` moves it."""
        self._ask("POST", "clock", json.dumps({"hold": True}))


class LocalHubProcess:
    """A `LocalHub` in a child process, which a test can kill and restart.

    The process starts with the object. Its data, ports and clock survive `kill` and `restart`; its
    counts do not. Use it as a context manager, or call `close`.

    Args:
        folder: Folder for all data; None for a temporary one.
        tokens: The right of each token. With None, tokens are not checked.
        conditions: The behaviour at the start, and after every restart.
        port: Port of the Hub; 0 for a free one.
        cas_port: Port of the CAS and CDN; 0 for a free one.
        users: The user who owns each token, as for `LocalHub`.

    Attributes:
        folder: Folder of all data.

    Example:
        >>> with LocalHubProcess() as hub:
        ...     hub.create_bucket("me/weights")
        ...     hub.kill()
        ...     hub.restart()  # the bucket is still there
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        tokens: Mapping[str, Right] | None = None,
        conditions: Conditions | None = None,
        *,
        port: int = 0,
        cas_port: int = 0,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self._temporary = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="local-hub-")
            folder = self._temporary.name
        self.folder = Path(folder)
        self._tokens = tokens
        self._users = users or {}
        self._conditions = conditions or Conditions()
        self._port = port
        self._cas_port = cas_port
        self._process: subprocess.Popen[str] | None = None
        self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Value for ``HF_ENDPOINT`` or ``HfApi(endpoint=...)``; a restart does not change it."""
        return f"http://{HOST}:{self._port}"

    @property
    def cas_url(self) -> str:
        """Address of the CAS, to which the Hub sends its clients."""
        return f"http://{HOST}:{self._cas_port}"

    @property
    def conditions(self) -> Conditions:
        """The current behaviour, which may be set at any time."""
        return Conditions.from_json(self._ask("GET", "conditions"))

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._ask("POST", "conditions", conditions.to_json())

    @property
    def clock(self) -> RemoteClock:
        """The server's time, which a test can drive; it continues after a restart."""
        return RemoteClock(self._ask)

    def counters(self) -> Counts:
        """Return the counts of requests and bytes since the start or `reset_counters`."""
        return Counts.from_json(self._ask("GET", "counters"))

    def reset_counters(self) -> None:
        """Restart the counts from zero."""
        self._ask("POST", "counters/reset")

    def create_bucket(self, bucket: str, *, private: bool = False) -> None:
        """Create a bucket, unless it exists.

        Args:
            bucket: Its ID, as ``"namespace/name"``.
            private: Whether reading it needs a token of its owner.
        """
        self._ask("POST", "bucket", json.dumps({"bucket": bucket, "private": private}))

    def corrupt_object(self, bucket: str, path: str, place: int) -> None:
        """Flip a bit of an object, as `LocalHub.corrupt_object` does.

        Args:
            bucket: ID of the bucket.
            path: Path of the object.
            place: Offset of the byte to damage.

        Raises:
            LookupError: The object does not exist or has no such byte.
        """
        wish = {"bucket": bucket, "path": path, "place": place}
        self._ask("POST", "corrupt", json.dumps(wish))

    def kill(self) -> None:
        """End the process with SIGKILL, even in the middle of a request."""
        self._end(force=True)

    def restart(self) -> None:
        """Start the process, on the same ports as before; kill it first if it still runs.

        Raises:
            RuntimeError: The process does not start.
        """
        self.kill()
        self._process = subprocess.Popen(  # noqa: S603
            self._command(), stdout=subprocess.PIPE, text=True
        )
        lines = list(islice(self._process.stdout or (), 2))  # its two addresses
        if len(lines) < 2:
            self.kill()
            raise RuntimeError("the local Hub does not start: see its output above")
        self._port, self._cas_port = (int(line.rpartition(":")[2]) for line in lines)
        self._wait()
        self._ask("POST", "conditions", self._conditions.to_json())

    def close(self) -> None:
        """End the process, and delete a temporary folder."""
        self._end(force=False)
        if self._temporary is not None:
            self._temporary.cleanup()

    def _command(self) -> list[str]:
        options = {"--folder": self.folder, "--port": self._port, "--cas-port": self._cas_port}
        command = [sys.executable, "-m", "casweights.testing.hub"]
        command += [str(part) for option in options.items() for part in option]
        if self._tokens is not None:
            command.append("--check-tokens")
            for token, right in self._tokens.items():
                command += ["--token", f"{token}:{right}"]
        for token, user in self._users.items():
            command += ["--user", f"{token}:{user}"]
        return command

    def _wait(self) -> None:
        """Wait until the process answers."""
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._ask("GET", "conditions")
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
            else:
                return

    def _ask(self, method: str, name: str, body: str | None = None) -> bytes:
        """Send a request to a control route of the Hub; return the body of the answer."""
        connection = HTTPConnection(HOST, self._port, timeout=60)
        try:
            connection.request(method, f"/_hub/{name}", body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        # The errors of the methods of `LocalHub`, as its control routes encode them.
        if response.status == 404:
            raise LookupError(_message(data))
        if response.status != 200:
            raise ValueError(_message(data))
        return data

    def _end(self, *, force: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if force:
            process.kill()
        else:
            process.terminate()
        with process:
            process.wait()


def _message(data: bytes) -> str:
    value: Any = json.loads(data)
    return str(value["error"])
