"""The local Hub in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from casweights.testing.hub.conditions import Conditions, Counts
from casweights.testing.hub.server import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_START_SECONDS = 30.0


class RemoteClock:
    """The clock of a Hub in another process.

    Args:
        ask: Sends a request to the Hub.
    """

    def __init__(self, ask: Callable[[str, str, str], object]) -> None:
        self._ask = ask

    def advance(self, seconds: float) -> None:
        """Let time pass at once.

        Raises:
            ValueError: If the time is negative.
        """
        self._ask("POST", "clock", json.dumps({"advance": seconds}))

    def hold(self) -> None:
        """Stand still from now on, except when `advance` is called."""
        self._ask("POST", "clock", json.dumps({"hold": True}))


class LocalHubProcess:
    """What `LocalHub` is, as a child process, which can be killed and started again.

    Args:
        folder: Where everything is kept; None for a temporary one.
        tokens: What each token may; with None everybody may do everything.
        conditions: How it behaves at first, and after every start.
        port: Of the Hub; 0 for any that is free.
        cas_port: Of the CAS and CDN; 0 for any that is free.
        users: Whose each token is, see `LocalHub`.

    Attributes:
        folder: Where everything is kept.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        tokens: Mapping[str, Literal["read", "write"]] | None = None,
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
        """What ``HF_ENDPOINT`` or ``HfApi(endpoint=...)`` must be; the same after a restart."""
        return f"http://{HOST}:{self._port}"

    @property
    def cas_url(self) -> str:
        """The CAS, to which the client is sent."""
        return f"http://{HOST}:{self._cas_port}"

    @property
    def conditions(self) -> Conditions:
        """How it behaves now; may be set at any time."""
        return Conditions.from_json(self._ask("GET", "conditions"))

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._ask("POST", "conditions", conditions.to_json())

    @property
    def clock(self) -> RemoteClock:
        """Its time, which tests may drive; it goes on after a restart."""
        return RemoteClock(self._ask)

    def counters(self) -> Counts:
        """What was asked of it since `reset_counters`, or since it was started."""
        return Counts.from_json(self._ask("GET", "counters"))

    def reset_counters(self) -> None:
        """Count from zero again."""
        self._ask("POST", "counters/reset")

    def create_bucket(self, bucket: str, *, private: bool = False) -> None:
        """Create a bucket, named as ``"namespace/name"``, unless it is there."""
        self._ask("POST", "bucket", json.dumps({"bucket": bucket, "private": private}))

    def corrupt_object(self, bucket: str, path: str, place: int) -> None:
        """Flip a bit of byte `place` of an object, see `LocalHub.corrupt_object`.

        Raises:
            LookupError: If there is no such object, or no such byte.
        """
        wish = {"bucket": bucket, "path": path, "place": place}
        self._ask("POST", "corrupt", json.dumps(wish))

    def kill(self) -> None:
        """End it with SIGKILL, in the middle of whatever it does."""
        self._end(force=True)

    def restart(self) -> None:
        """Start it, on the same ports if it ran before; one that still runs is killed first.

        Raises:
            RuntimeError: If it does not come up.
        """
        self.kill()
        self._process = subprocess.Popen(  # noqa: S603
            self._command(), stdout=subprocess.PIPE, text=True
        )
        lines = list(islice(self._process.stdout or (), 2))
        if len(lines) < 2:
            self.kill()
            raise RuntimeError("the local Hub does not start")
        self._port, self._cas_port = (int(line.rpartition(":")[2]) for line in lines)
        self._wait()
        self._ask("POST", "conditions", self._conditions.to_json())

    def close(self) -> None:
        """End it; a temporary folder is deleted."""
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
        connection = HTTPConnection(HOST, self._port, timeout=60)
        try:
            connection.request(method, f"/_hub/{name}", body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
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
