"""HTTP requests and answers, and the table that maps requests to their handlers."""

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
    """A body that is a range of a file on disk: `size` bytes from offset `start`."""

    path: Path
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """A body of `size` bytes that is produced piece by piece."""

    size: int
    pieces: Iterator[memoryview]


Body = bytes | FileSlice | Pieces


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request: status, body and headers."""

    status: int = 200
    body: Body = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of bytes of the body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.size

    def head(self, keep_alive: bool) -> bytes:
        """Return the encoded status line and headers."""
        lines = [f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if "Content-Length" not in self.headers:  # an answer to HEAD states that of GET
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
    """Ends a request with an error, which is sent to the client.

    Args:
        status: HTTP status of the answer.
        message: Reason for people.
        code: Reason for programs: the value of the Hub's header ``X-Error-Code``.

    Attributes:
        answer: The answer to send.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        if code is not None:
            headers["X-Error-Code"] = code
        self.answer = Answer(status, json.dumps({"error": message}).encode(), headers)


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an answer whose body is a JSON value."""
    head = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Answer(status, json.dumps(value).encode(), head)


@dataclass(slots=True)
class Request:
    """A request whose headers have been read.

    Attributes:
        method: HTTP method, such as ``"GET"``.
        target: Path and query, still quoted.
        headers: Values by names in lower case.
        args: The groups of the route's pattern, unquoted; an absent group is empty.
        reader: Passes each block of the body to a function. It can be called once; a block is
            valid only during the call of the function.
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
        """The parameters of the query; of a repeated name, the last value."""
        values = parse_qs(self.target.partition("?")[2], keep_blank_values=True)
        return {name: several[-1] for name, several in values.items()}

    @property
    def token(self) -> str | None:
        """The bearer token, if any."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    def read(self) -> bytes:
        """Return the whole body."""
        data = bytearray()
        self.reader(data.extend)
        return bytes(data)

    def save(self, file: BinaryIO) -> None:
        """Write the body to a file, block by block."""
        self.reader(file.write)

    def json(self) -> Any:
        """Parse the body as JSON; an empty body is an empty object.

        Raises:
            Refusal: The body is not JSON.
        """
        try:
            return json.loads(self.read() or b"{}")
        except ValueError:
            raise Refusal(400, "the body is not JSON") from None

    def form(self) -> dict[str, list[str]]:
        """Parse the body as an encoded form; return the values of each name."""
        return parse_qs(self.read().decode())

    def lines(self) -> list[dict[str, Any]]:
        """Parse the body as lines of JSON objects.

        Raises:
            Refusal: A line is not a JSON object.
        """
        try:
            values = [json.loads(line) for line in self.read().splitlines() if line.strip()]
        except ValueError:
            raise Refusal(400, "every line of the body must be JSON") from None
        if not all(isinstance(value, dict) for value in values):
            raise Refusal(400, "every line of the body must be a JSON object")
        return values

    def range(self, size: int) -> tuple[int, int] | None:
        """Return start and end of the requested range of bytes; None for all bytes.

        Args:
            size: Number of bytes that exist.

        Raises:
            Refusal: The range is empty or begins after the last byte.
        """
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", ""))
        if match is None or match[0] == "bytes=-":
            return None
        if not match[1]:  # "bytes=-N": the last N bytes
            start, end = max(0, size - int(match[2])), size
        else:
            start = int(match[1])
            end = min(size, int(match[2]) + 1) if match[2] else size
        if start >= end:
            raise Refusal(416, f"the range {match[0]} is outside of {size} bytes")
        return start, end


@dataclass(frozen=True, slots=True)
class Route:
    """A kind of request and the function that handles it.

    Attributes:
        name: Name in `Counts` and in `Conditions.only`; several routes may share one.
        methods: HTTP methods, separated by blanks.
        pattern: Regular expression for the whole quoted path.
        handler: Function that returns the answer.
    """

    name: str
    methods: str
    pattern: str
    handler: Callable[[Request], Answer]


class Router:
    """A table of routes. The first route that matches a request handles it."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = [
            (frozenset(route.methods.split()), re.compile(route.pattern), route) for route in routes
        ]

    def find(self, request: Request) -> Route | None:
        """Return the route of a request, or None, and set `Request.args` from its pattern."""
        for methods, pattern, route in self._routes:
            if request.method in methods and (match := pattern.fullmatch(request.path)):
                request.args = tuple(unquote(group or "") for group in match.groups())
                return route
        return None
