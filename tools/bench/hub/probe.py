"""What an operation on the local Hub costs: seconds, bytes and requests."""

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
        name: For the report.
        latency: Seconds of a round trip.
        bandwidth: Bytes a second in each direction; None for as fast as it goes.
    """

    name: str
    latency: float = 0.0
    bandwidth: float | None = None

    @property
    def conditions(self) -> Conditions:
        return Conditions(latency=self.latency, bandwidth=self.bandwidth)


UNSHAPED = Line(name="unshaped")
LINES = {
    "unshaped": UNSHAPED,
    "1gbit": Line(name="1 Gbit/s", latency=0.05, bandwidth=125e6),
    "200mbit": Line(name="200 Mbit/s", latency=0.05, bandwidth=25e6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What an operation cost.

    Attributes:
        seconds: Time.
        processor: Processor time of the client.
        sent: Bytes of bodies that the Hub received.
        received: Bytes of bodies that it sent.
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
        """Read what `to_json` gave."""
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """As JSON-like values."""
        return asdict(self)

    @property
    def moved(self) -> int:
        """Bytes in the direction that has more."""
        return max(self.sent, self.received)

    @property
    def total(self) -> int:
        """Number of requests; what hf_xet tells about itself is one, for which it waits."""
        return sum(self.requests.values())

    @property
    def routes(self) -> str:
        """The requests as text."""
        return ", ".join(f"{n} {route}" for route, n in sorted(self.requests.items()))


class Probe:
    """Asks and sets a local Hub of another process.

    Args:
        url: Its URL.
    """

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://")

    def set(self, line: Line) -> None:
        """Set the network."""
        self._ask("POST", "conditions", line.conditions.to_json())

    def counts(self) -> Counts:
        """What was asked so far."""
        return Counts.from_json(self._ask("GET", "counters"))

    def measure(self, function: Callable[[], object], line: Line = UNSHAPED) -> Spent:
        """Carry out one operation over such a line, and leave an unshaped one."""
        self.set(line)
        spent = self.count(function)
        self.set(UNSHAPED)
        return spent

    def count(self, function: Callable[[], object]) -> Spent:
        """Carry out one operation over the line as it is."""
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
