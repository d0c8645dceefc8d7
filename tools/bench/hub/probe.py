"""Measures what an operation on a local Hub costs: seconds, bytes and requests."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from casweights.testing.hub import Conditions, Counts

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A network between a client and the Hub.

    Attributes:
        name: Name in the report.
        latency: Seconds of a round trip.
        bandwidth: Bytes per second in each direction; None for no limit.
        upload_grants: Whether the storage hands out grants for uploads, see `Conditions`.
    """

    name: str
    latency: float = 0.0
    bandwidth: float | None = None
    upload_grants: bool = False

    @property
    def conditions(self) -> Conditions:
        return Conditions(
            latency=self.latency, bandwidth=self.bandwidth, upload_grants=self.upload_grants
        )


UNSHAPED = Line(name="unshaped")
LINES = {
    "unshaped": UNSHAPED,
    "1gbit": Line(name="1 Gbit/s", latency=0.05, bandwidth=125e6),
    "200mbit": Line(name="200 Mbit/s", latency=0.05, bandwidth=25e6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The costs of an operation.

    Attributes:
        seconds: Wall-clock time.
        processor: Processor time of the client, in seconds.
        sent: Bytes of bodies that the Hub received.
        received: Bytes of bodies that the Hub sent.
        requests: Number of requests by route.
    """

    seconds: float
    processor: float
    sent: int
    received: int
    requests: dict[str, int]

    def __add__(self, other: Spent) -> Spent:
        requests = Counter(self.requests) + Counter(other.requests)
        return Spent(
            seconds=self.seconds + other.seconds,
            processor=self.processor + other.processor,
            sent=self.sent + other.sent,
            received=self.received + other.received,
            requests=dict(requests),
        )

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Spent:
        """Parse the result of `to_json`."""
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the costs as values for JSON."""
        return asdict(self)

    @property
    def moved(self) -> int:
        """Number of bytes in the direction that carried more."""
        return max(self.sent, self.received)

    @property
    def total(self) -> int:
        """Number of requests, including hf_xet's telemetry, for which the client waits."""
        return sum(self.requests.values())

    @property
    def routes(self) -> str:
        """Number of requests of each route, as text."""
        return ", ".join(f"{n} {route}" for route, n in sorted(self.requests.items()))


class Probe:
    """Reads the counters and sets the conditions of a local Hub in another process.

    Args:
        url: URL of the Hub.
    """

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")

    def set(self, line: Line) -> None:
        """Set the network."""
        self._ask("POST", "conditions", line.conditions.to_json())

    def counts(self) -> Counts:
        """Return the counts of requests and bytes so far."""
        return Counts.from_json(self._ask("GET", "counters"))

    def measure(self, function: Callable[[], object], line: Line = UNSHAPED) -> Spent:
        """Measure one operation over a network; afterwards the network is unshaped."""
        self.set(line)
        spent = self.count(function)
        self.set(UNSHAPED)
        return spent

    def count(self, function: Callable[[], object]) -> Spent:
        """Measure one operation over the current network."""
        before = self.counts()
        start, processor = time.perf_counter(), time.process_time()
        function()
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        after = self.counts()
        requests = {
            route: n - before.requests[route]
            for route, n in after.requests.items()
            if n > before.requests[route]
        }
        return Spent(
            seconds=seconds,
            processor=processor,
            sent=after.bytes_in - before.bytes_in,
            received=after.bytes_out - before.bytes_out,
            requests=requests,
        )

    def _ask(self, method: str, name: str, body: str | None = None) -> bytes:
        connection = HTTPConnection(self._address, timeout=60)
        try:
            connection.request(method, f"/_hub/{name}", body)
            return connection.getresponse().read()
        finally:
            connection.close()
