"""Simulated faults of the network and the server, and counts of requests."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The behaviour of a local Hub. With the defaults it is fast and never fails.

    Rates are shares of the requests, from 0 to 1.

    Attributes:
        latency: Seconds to wait before a request is handled.
        bandwidth: Bytes of bodies per second in each direction, shared by all connections of both
            ports; None for no limit.
        error_rate: Share of requests that are answered with 500 or 503 and have no effect.
        reset_rate: Share of requests whose connection is dropped and that have no effect.
        lost_answer_rate: Share of requests that take effect, but whose connection is dropped before
            the answer.
        truncate_rate: Share of answers whose body is cut in half before the connection is dropped.
        stall_rate: Share of requests that hang for `stall` seconds before they are handled.
        stall: Seconds that a stalled request hangs.
        only: Names of the routes to which the five rates apply; all routes if empty.
        seed: Seed of the random choices. The same requests in the same order meet the same faults.
        failing_path: Lines of batches whose path contains this text fail, unless it is empty.
        failing_lines: Number of lines of batches that fail, counted from the moment at which the
            conditions are set.
        listing_lag: Age in seconds of the state that listings show.
        paths_info_lag: Age in seconds of the state that lookups by path show.
        clock_skew: Largest error in seconds of the upload time of a file. Each file gets another
            error, as if another server had added it.
        token_lifetime: Seconds for which tokens of the CAS are valid.
        upload_grants: Whether the CAS issues a grant for each xorb, which the client then uploads
            to another address and commits. Otherwise clients upload xorbs directly.
        direct_uploads: Whether the CAS takes xorbs that clients upload directly.
        free_after: Seconds after which bytes that no path names any more are freed. Freed bytes can
            be neither read nor named, only uploaded again. None keeps them forever.
        upload_grace: Minimum number of seconds for which uploaded bytes wait for their first path.

    Example:
        >>> hub.conditions = Conditions(latency=0.05, error_rate=0.1, only=frozenset({"batch"}))
    """

    latency: float = 0.0
    bandwidth: float | None = None
    error_rate: float = 0.0
    reset_rate: float = 0.0
    lost_answer_rate: float = 0.0
    truncate_rate: float = 0.0
    stall_rate: float = 0.0
    stall: float = 60.0
    only: frozenset[str] = frozenset()
    seed: int = 0
    failing_path: str = ""
    failing_lines: int = 0
    listing_lag: float = 0.0
    paths_info_lag: float = 0.0
    clock_skew: float = 0.0
    token_lifetime: float = 3600.0
    upload_grants: bool = False
    direct_uploads: bool = True
    free_after: float | None = None
    upload_grace: float = 3600.0

    @classmethod
    def from_json(cls, text: str | bytes) -> Conditions:
        """Parse the result of `to_json`; missing names get their defaults.

        Raises:
            TypeError: A name is unknown.
            ValueError: The text is not JSON.
        """
        values: dict[str, Any] = json.loads(text)
        values["only"] = frozenset(values.get("only", ()))
        return cls(**values)

    def to_json(self) -> str:
        """Return the conditions as a JSON object."""
        return json.dumps({**asdict(self), "only": sorted(self.only)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers of requests to a local Hub, and of bytes of their bodies, without headers.

    Attributes:
        requests: Number of requests, by the name of their route.
        bytes_in: Number of bytes received.
        bytes_out: Number of bytes sent.
        bytes_in_by_route: Number of bytes received, by the name of the route.
        bytes_out_by_route: Number of bytes sent, by the name of the route.
    """

    requests: Mapping[str, int]
    bytes_in: int
    bytes_out: int
    bytes_in_by_route: Mapping[str, int]
    bytes_out_by_route: Mapping[str, int]

    @property
    def total(self) -> int:
        """Number of all requests."""
        return sum(self.requests.values())

    @classmethod
    def of(
        cls, requests: Mapping[str, int], received: Mapping[str, int], sent: Mapping[str, int]
    ) -> Counts:
        """Return the counts for numbers by route; a missing route counts as 0."""
        return cls(
            requests=MappingProxyType(Counter(requests)),
            bytes_in=sum(received.values()),
            bytes_out=sum(sent.values()),
            bytes_in_by_route=MappingProxyType(Counter(received)),
            bytes_out_by_route=MappingProxyType(Counter(sent)),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Counts:
        """Parse the result of `to_json`."""
        values = json.loads(text)
        return cls.of(values["requests"], values["bytes_in_by_route"], values["bytes_out_by_route"])

    def to_json(self) -> str:
        """Return the counts as a JSON object."""
        values = {
            "requests": dict(self.requests),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "bytes_in_by_route": dict(self.bytes_in_by_route),
            "bytes_out_by_route": dict(self.bytes_out_by_route),
        }
        return json.dumps(values)


class Meter:
    """Counts requests and bytes. May be used from several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        with self._lock:
            self._requests: Counter[str] = Counter()
            self._received: Counter[str] = Counter()
            self._sent: Counter[str] = Counter()

    def request(self, route: str) -> None:
        """Count one request."""
        with self._lock:
            self._requests[route] += 1

    def received(self, route: str, nbytes: int) -> None:
        """Count bytes of a request's body."""
        with self._lock:
            self._received[route] += nbytes

    def sent(self, route: str, nbytes: int) -> None:
        """Count bytes of an answer's body."""
        with self._lock:
            self._sent[route] += nbytes

    def counts(self) -> Counts:
        """Return the counts since the last reset."""
        with self._lock:
            return Counts.of(self._requests, self._received, self._sent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """The simulated faults of one request.

    Attributes:
        status: Error to answer with instead of handling the request, if any.
        reset: Whether to drop the connection instead of handling the request.
        lost: Whether to drop the connection after handling the request.
        truncated: Whether to cut the answer short.
        stall: Seconds to wait before handling the request.
    """

    status: int | None = None
    reset: bool = False
    lost: bool = False
    truncated: bool = False
    stall: float = 0.0


@dataclass(slots=True)
class _Pipe:
    """One direction of the network, with a limit of bytes per second or None."""

    rate: float | None
    free_at: float = 0.0  # monotonic time at which the bytes booked so far have passed

    def book(self, nbytes: int) -> float:
        """Reserve the time that `nbytes` bytes take; return the seconds until they may start."""
        if self.rate is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self.free_at)
        self.free_at = start + nbytes / self.rate
        return start - now


@dataclass(slots=True)
class Weather:
    """The conditions in force, shared by both ports. May be used from several threads at once.

    Attributes:
        conditions: The current conditions; set them with `change`.
        stopping: Set when the server closes, so that no thread sleeps any longer.
    """

    conditions: Conditions = field(default_factory=Conditions)
    stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dice: random.Random = field(init=False)
    _pipes: tuple[_Pipe, _Pipe] = field(init=False)
    _failing_lines: int = field(init=False)

    def __post_init__(self) -> None:
        self.change(self.conditions)

    def change(self, conditions: Conditions) -> None:
        """Set the conditions, and restart the random choices and the count of failing lines."""
        with self._lock:
            self.conditions = conditions
            self._dice = random.Random(conditions.seed)  # noqa: S311
            self._pipes = (_Pipe(conditions.bandwidth), _Pipe(conditions.bandwidth))
            self._failing_lines = conditions.failing_lines

    def fate(self, route: str) -> Fate:
        """Choose the faults of a request to a route. Latency is not one of them."""
        now = self.conditions
        if now.only and route not in now.only:
            return Fate()
        rates = (
            now.error_rate,
            now.reset_rate,
            now.lost_answer_rate,
            now.truncate_rate,
            now.stall_rate,
        )
        if not any(rates):
            return Fate()
        with self._lock:
            # A fixed number of draws per request, so that a rate does not shift the other faults.
            error, reset, lost, truncated, stall = (self._dice.random() < rate for rate in rates)
            status = self._dice.choice((500, 503))
        return Fate(
            status=status if error else None,
            reset=reset,
            lost=lost,
            truncated=truncated,
            stall=now.stall if stall else 0.0,
        )

    def skew(self) -> float:
        """Return the error of the next file's upload time, in seconds."""
        limit = self.conditions.clock_skew
        with self._lock:
            return self._dice.uniform(-limit, limit) if limit else 0.0

    def line_fails(self, path: str) -> bool:
        """Return whether a line of a batch about this path fails on purpose."""
        with self._lock:
            if self._failing_lines:
                self._failing_lines -= 1
                return True
            text = self.conditions.failing_path
            return bool(text) and text in path

    def block(self, largest: int) -> int:
        """Return the number of bytes to move at once, at most `largest`."""
        rate = self.conditions.bandwidth
        # A twentieth of a second of bandwidth: a slow line then flows evenly.
        return largest if rate is None else max(1024, min(largest, int(rate / 20)))

    def receive(self, nbytes: int) -> None:
        """Wait until the bandwidth allows `nbytes` more bytes to come in."""
        self._pass(0, nbytes)

    def send(self, nbytes: int) -> None:
        """Wait until the bandwidth allows `nbytes` more bytes to go out."""
        self._pass(1, nbytes)

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the server closes."""
        if seconds > 0:
            self.stopping.wait(seconds)

    def _pass(self, direction: int, nbytes: int) -> None:
        with self._lock:
            delay = self._pipes[direction].book(nbytes)
        self.sleep(delay)
