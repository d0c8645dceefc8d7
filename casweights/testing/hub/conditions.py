"""What can be wrong with the network and the server, and how much was asked of them."""

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
    """How the local Hub behaves; the default is a fast and faultless one.

    Rates are shares of the requests, from 0 to 1.

    Attributes:
        latency: Seconds that every request waits before anything else happens.
        bandwidth: Bytes of bodies a second, in each direction, shared by all connections of both
            ports; None for no limit.
        error_rate: Requests that are answered with 500 or 503, nothing done.
        reset_rate: Requests whose connection is dropped, nothing done.
        lost_answer_rate: Requests that are done, and whose connection is then dropped.
        truncate_rate: Answers whose body is cut in half before the connection is dropped.
        stall_rate: Requests that hang for `stall` seconds before they are done.
        stall: See `stall_rate`.
        only: Names of the routes that the five rates hold for; all if empty.
        seed: Of the dice; the same requests in the same order then fare alike.
        failing_path: Lines of batches whose path contains this text fail, if it is not empty.
        failing_lines: So many lines of batches fail, counted from when the conditions were set.
        listing_lag: Listings show a bucket as it was so many seconds ago.
        paths_info_lag: The same for lookups by path.
        clock_skew: Files are added by servers whose clocks are wrong by up to so many seconds, each
            by another.
        token_lifetime: Seconds for which tokens of the CAS are valid.
        upload_grants: The CAS hands out a grant for each xorb, which is then sent to an address of
            its own and committed, instead of taking it directly.
        free_after: Seconds after which bytes are freed that no path names any more: they can then
            be neither read nor named, only uploaded again. None keeps them for ever.
        upload_grace: Seconds for which bytes that were uploaded are at least kept for the path
            that is to name them.
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
    free_after: float | None = None
    upload_grace: float = 3600.0

    @classmethod
    def from_json(cls, text: str | bytes) -> Conditions:
        """Read what `to_json` wrote; what it leaves out gets the default.

        Raises:
            TypeError: If it has an unknown name.
            ValueError: If it is not JSON.
        """
        values: dict[str, Any] = json.loads(text)
        values["only"] = frozenset(values.get("only", ()))
        return cls(**values)

    def to_json(self) -> str:
        """As a JSON object."""
        return json.dumps({**asdict(self), "only": sorted(self.only)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What was asked of the local Hub; bytes are those of bodies, without headers.

    Attributes:
        requests: Number of requests by the name of their route.
        bytes_in: Bytes received.
        bytes_out: Bytes sent.
        bytes_in_by_route: Bytes received by the name of the route.
        bytes_out_by_route: Bytes sent by the name of the route.
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
        """Counts from counts by route; those that are missing count as 0."""
        return cls(
            requests=MappingProxyType(Counter(requests)),
            bytes_in=sum(received.values()),
            bytes_out=sum(sent.values()),
            bytes_in_by_route=MappingProxyType(Counter(received)),
            bytes_out_by_route=MappingProxyType(Counter(sent)),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Counts:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        return cls.of(values["requests"], values["bytes_in_by_route"], values["bytes_out_by_route"])

    def to_json(self) -> str:
        """As a JSON object."""
        values = {
            "requests": dict(self.requests),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "bytes_in_by_route": dict(self.bytes_in_by_route),
            "bytes_out_by_route": dict(self.bytes_out_by_route),
        }
        return json.dumps(values)


class Meter:
    """Counts requests and bytes; may be used by many threads at once."""

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
        """Count bytes that came in."""
        with self._lock:
            self._received[route] += nbytes

    def sent(self, route: str, nbytes: int) -> None:
        """Count bytes that went out."""
        with self._lock:
            self._sent[route] += nbytes

    def counts(self) -> Counts:
        """The numbers so far."""
        with self._lock:
            return Counts.of(self._requests, self._received, self._sent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What becomes of one request.

    Attributes:
        status: It is answered with this error, nothing done.
        reset: Its connection is dropped, nothing done.
        lost: It is done, and its connection dropped.
        truncated: Its answer is cut short.
        stall: Seconds that it hangs.
    """

    status: int | None = None
    reset: bool = False
    lost: bool = False
    truncated: bool = False
    stall: float = 0.0


@dataclass(slots=True)
class _Pipe:
    """One direction of a line with so many bytes a second, None for no limit."""

    rate: float | None
    free_at: float = 0.0

    def book(self, nbytes: int) -> float:
        """Seconds to wait before so many bytes may pass."""
        if self.rate is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self.free_at)
        self.free_at = start + nbytes / self.rate
        return start - now


@dataclass(slots=True)
class Weather:
    """The conditions in force, shared by both ports; may be used by many threads at once."""

    conditions: Conditions = field(default_factory=Conditions)
    stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _dice: random.Random = field(init=False)
    _pipes: tuple[_Pipe, _Pipe] = field(init=False)
    _failing_lines: int = field(init=False)

    def __post_init__(self) -> None:
        self.change(self.conditions)

    def change(self, conditions: Conditions) -> None:
        """Set other conditions, and throw new dice."""
        with self._lock:
            self.conditions = conditions
            self._dice = random.Random(conditions.seed)  # noqa: S311
            self._pipes = (_Pipe(conditions.bandwidth), _Pipe(conditions.bandwidth))
            self._failing_lines = conditions.failing_lines

    def fate(self, route: str) -> Fate:
        """What becomes of a request of that route; latency is not part of it."""
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
        """By how many seconds the clock of the server is wrong that adds the next file."""
        limit = self.conditions.clock_skew
        with self._lock:
            return self._dice.uniform(-limit, limit) if limit else 0.0

    def line_fails(self, path: str) -> bool:
        """Whether a line of a batch about this path fails on purpose."""
        with self._lock:
            if self._failing_lines:
                self._failing_lines -= 1
                return True
            text = self.conditions.failing_path
            return bool(text) and text in path

    def block(self, largest: int) -> int:
        """How many bytes to move at once, so that a slow line flows evenly."""
        rate = self.conditions.bandwidth
        return largest if rate is None else max(1024, min(largest, int(rate / 20)))

    def receive(self, nbytes: int) -> None:
        """Wait until so many bytes may come in."""
        self._pass(0, nbytes)

    def send(self, nbytes: int) -> None:
        """Wait until so many bytes may go out."""
        self._pass(1, nbytes)

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the server."""
        if seconds > 0:
            self.stopping.wait(seconds)

    def _pass(self, direction: int, nbytes: int) -> None:
        with self._lock:
            delay = self._pipes[direction].book(nbytes)
        self.sleep(delay)
