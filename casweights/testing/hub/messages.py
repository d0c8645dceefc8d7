"""Requests and answers, and the table that says who answers what."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A body that is a part of a file on disk."""

    path: Path
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """A body of known size that is made piece by piece."""

    size: int
    pieces: Iterator[memoryview]


Body = bytes | FileSlice | Pieces


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with."""

    status: int = 200
    body: Body = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.size

    def head(self, keep_alive: bool) -> bytes:
        """Status line and headers."""
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if "Content-Length" not in self.headers:
            lines.append(f"Content-Length: {self.size}")
        lines.append(f"Date: {formatdate(usegmt=True)}")
        lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


REASONS = {
    200: "OK",
    201: "Created",
    206: "Partial Content",
    302: "Found",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
    422: "Unprocessable Entity",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: Of the answer.
        message: What is wrong, for people.
        code: What is wrong, as the Hub names it in its header ``X-Error-Code``.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        if code is not None:
            headers["X-Error-Code"] = code
        self.answer = Answer(status, json.dumps({"error": message}).encode(), headers)


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer that is a JSON value."""
    head = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Answer(status, json.dumps(value).encode(), head)


@dataclass(slots=True)
class Request:
    """A request whose headers have been read.

    Attributes:
        method: As ``"GET"``.
        target: Path and query, still quoted.
        headers: By their names in lower case.
        args: The groups of the route's pattern, unquoted.
        reader: Calls its argument with each block of the body, once.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    reader: Callable[[Callable[[memoryview], object]], None]
    args: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The quoted path."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """The last value of every name of the query."""
        values = parse_qs(self.target.partition("?")[2], keep_blank_values=True)
        return {name: several[-1] for name, several in values.items()}

    @property
    def token(self) -> str | None:
        """The bearer token."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    def read(self) -> bytes:
        """The whole body."""
        data = bytearray()
        self.reader(data.extend)
        return bytes(data)

    def save(self, file: BinaryIO) -> None:
        """Write the body to a file, block by block."""
        self.reader(file.write)

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            Refusal: If it is not JSON.
        """
        try:
            return json.loads(self.read() or b"{}")
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None

    def form(self) -> dict[str, list[str]]:
        """The body, as a form has it."""
        return parse_qs(self.read().decode())

    def lines(self) -> list[dict[str, Any]]:
        """The body as lines of JSON objects.

        Raises:
            Refusal: If it is not.
        """
        try:
            values = [json.loads(line) for line in self.read().splitlines() if line.strip()]
        except ValueError:
            raise Refusal(400, "the body is not made of lines of JSON") from None
        if not all(isinstance(value, dict) for value in values):
            raise Refusal(400, "a line is not a JSON object")
        return values

    def range(self, size: int) -> tuple[int, int] | None:
        """Start and end of the bytes asked for, None for all.

        Raises:
            Refusal: If there are no such bytes.
        """
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", ""))
        if match is None or match[0] == "bytes=-":
            return None
        if not match[1]:
            start, end = max(0, size - int(match[2])), size
        else:
            start = int(match[1])
            end = min(size, int(match[2]) + 1) if match[2] else size
        if start >= end:
            raise Refusal(416, f"there are only {size} bytes")
        return start, end


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests go where.

    Attributes:
        name: Under which they are counted, and faults chosen.
        methods: Separated by blanks.
        pattern: Of the whole quoted path.
        handler: What answers them.
    """

    name: str
    methods: str
    pattern: str
    handler: Callable[[Request], Answer]


class Router:
    """A table of routes, of which the first that fits is taken."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = [
            (frozenset(route.methods.split()), re.compile(route.pattern), route) for route in routes
        ]

    def find(self, request: Request) -> Route | None:
        """The route of a request, whose `args` are set."""
        for methods, pattern, route in self._routes:
            if request.method in methods and (match := pattern.fullmatch(request.path)):
                request.args = tuple(unquote(group or "") for group in match.groups())
                return route
        return None
