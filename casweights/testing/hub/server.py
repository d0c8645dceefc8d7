"""An HTTP server on a loopback port that simulates the faults that the conditions set."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

from casweights.testing.hub.conditions import Fate
from casweights.testing.hub.messages import Answer, FileSlice, Refusal, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.testing.hub.conditions import Meter, Weather
    from casweights.testing.hub.messages import Body, Router

HOST = "127.0.0.1"
CONTROL = "_hub"  # name of the routes by which a test drives the Hub

_BLOCK = 1 << 20  # bytes to read or send at once
_MAX_HEAD = 1 << 16  # bytes of request line and headers
_UNKNOWN = "unknown"  # name under which requests without a route are counted


class _HangUp(Exception):
    """Ends the connection and its thread."""


class Server:
    """Listens on one port, with a thread for each connection.

    The port is bound at once, and connections are accepted after `start`. Requests to routes named
    `CONTROL` are neither counted, nor slowed down, nor subject to faults.

    Args:
        port: The port; 0 for a free one.
        router: Finds the handlers of requests.
        weather: The conditions, shared with other ports.
        meter: The counts, shared with other ports.
        before: Called before each request is handled.

    Attributes:
        port: The port that the server listens on.
    """

    def __init__(
        self,
        port: int,
        router: Router,
        weather: Weather,
        meter: Meter,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._before = before
        self._router = router
        self._weather = weather
        self._meter = meter
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._closing = False
        self._listener = socket.create_server((HOST, port), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="hub-accept", daemon=True)

    def start(self) -> None:
        """Start to accept connections."""
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening, drop all connections and wait for their threads."""
        self._closing = True
        if self._acceptor.is_alive():
            address = (HOST, self.port)
            with contextlib.suppress(OSError), socket.create_connection(address, timeout=5):
                pass  # a connection of our own wakes the acceptor, which then sees `_closing`
            self._acceptor.join()
        self._listener.close()
        with self._lock:
            threads = list(self._connections.values())
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        """Accept connections and start their threads, until the server closes."""
        while True:
            connection, _ = self._listener.accept()
            if self._closing:
                connection.close()
                return
            # Otherwise small answers wait up to 40 ms for the client's acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="hub-connection", daemon=True
            )
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        """Handle the requests of a connection, one after another."""
        try:
            with connection, contextlib.suppress(_HangUp, OSError):
                line = _Line(connection, self._weather, self._meter)
                while (request := line.next_request()) is not None:
                    self._handle(line, request)
        finally:
            with self._lock:
                del self._connections[connection]

    def _handle(self, line: _Line, request: Request) -> None:
        """Answer a request, subject to the faults that are chosen for it."""
        route = self._router.find(request)
        line.route = route.name if route else _UNKNOWN
        fate = Fate()
        if line.route != CONTROL:
            self._meter.request(line.route)
            self._weather.sleep(self._weather.conditions.latency)
            fate = self._weather.fate(line.route)
        if fate.reset:
            line.reset()
        self._weather.sleep(fate.stall)
        if fate.status is not None:
            answer = Refusal(fate.status, "a simulated error").answer
        elif route is None:
            answer = Refusal(404, f"no route for {request.method} {request.path}").answer
        else:
            self._before()
            answer = _answer(route.handler, request)
        line.drain()
        if fate.lost:
            line.reset()
        line.send(answer, head_only=request.method == "HEAD", truncated=fate.truncated)


def _answer(handler: Callable[[Request], Answer], request: Request) -> Answer:
    """Call a handler; turn refusals and malformed values of the request into answers."""
    try:
        return handler(request)
    except Refusal as refusal:
        return refusal.answer
    except (KeyError, TypeError, ValueError) as error:
        # On one line, because the message is sent in a header.
        return Refusal(400, f"the request is not valid: {error!r}".replace("\n", " ")).answer


class _Line:
    """One connection: reads requests and writes answers.

    The thread of the connection calls, for each request in this order: `next_request`; the
    request's reader at most once; `drain`; and `send` or `reset`.

    Attributes:
        route: Name of the current request's route, under which its bytes are counted.
    """

    def __init__(self, connection: socket.socket, weather: Weather, meter: Meter) -> None:
        self.route = _UNKNOWN
        self._connection = connection
        self._weather = weather
        self._meter = meter
        self._ahead = bytearray()  # received, but not used yet
        self._buffer: bytearray | None = None
        self._body: Iterator[memoryview] = iter(())
        self._keep_alive = True

    def next_request(self) -> Request | None:
        """Read the head of the next request; return None at the end of the connection."""
        if not self._keep_alive:
            return None
        while (end := self._ahead.find(b"\r\n\r\n")) < 0:
            if len(self._ahead) > _MAX_HEAD or not self._read_ahead():
                return None
        first, *rest = self._ahead[:end].decode("latin-1").split("\r\n")
        del self._ahead[: end + 4]
        pairs = (field.partition(":") for field in rest)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        method, target, version = first.split(" ", 2)
        wish = headers.get("connection", "").lower()
        self._keep_alive = wish != "close" and version == "HTTP/1.1"
        if headers.get("expect", "").lower() == "100-continue":
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", "").lower():
            self._body = self._chunked_body()
        else:
            self._body = self._sized_body(int(headers.get("content-length", 0)))
        return Request(method, target, headers, self._read_body)

    def drain(self) -> None:
        """Read the rest of the body: a client may read the answer only after sending it all."""
        for _ in self._body:
            pass

    def reset(self) -> None:
        """Drop the connection at once.

        Raises:
            _HangUp: Always.
        """
        # Closing a socket that lingers for 0 seconds sends RST instead of FIN.
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _HangUp

    def send(self, answer: Answer, *, head_only: bool, truncated: bool) -> None:
        """Write an answer.

        Args:
            answer: The answer.
            head_only: Whether to leave out the body, as for HEAD.
            truncated: Whether to cut the body in half and then close the connection.
        """
        size = 0 if head_only else answer.size
        self._keep_alive = self._keep_alive and not truncated
        head = answer.head(self._keep_alive)
        if truncated:
            size //= 2
        # Head and a small body in one packet, unless the bandwidth is limited.
        if isinstance(answer.body, bytes) and size <= _BLOCK and self._unshaped:
            self._count_sent(size)
            self._connection.sendall(head + answer.body[:size])
        else:
            self._connection.sendall(head)
            self._send_body(answer.body, size)

    @property
    def _unshaped(self) -> bool:
        """Whether answers are sent without a limit of bandwidth."""
        return self.route == CONTROL or self._weather.conditions.bandwidth is None

    def _send_body(self, body: Body, size: int) -> None:
        if isinstance(body, FileSlice):
            with body.path.open("rb", buffering=0) as file:
                for start, count in self._blocks(size):
                    if self._connection.sendfile(file, body.start + start, count) != count:
                        raise _HangUp
            return
        pieces = iter((memoryview(body),)) if isinstance(body, bytes) else body.pieces
        for piece in pieces:
            for start, count in self._blocks(min(size, len(piece))):
                self._connection.sendall(piece[start : start + count])
            size -= min(size, len(piece))
            if not size:
                return

    def _blocks(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield start and size of blocks, each as soon as the bandwidth allows it."""
        start = 0
        while start < size:
            count = min(size - start, self._weather.block(_BLOCK))
            self._weather.send(count)
            self._count_sent(count)  # first: a client with the answer may query the counts
            yield start, count
            start += count

    def _count_sent(self, nbytes: int) -> None:
        if self.route != CONTROL:
            self._meter.sent(self.route, nbytes)

    def _read_body(self, take: Callable[[memoryview], object]) -> None:
        for block in self._body:
            take(block)

    def _read_ahead(self) -> bool:
        """Receive more bytes; return False at the end of the connection."""
        try:
            data = self._connection.recv(_MAX_HEAD)
        except OSError:
            raise _HangUp from None
        self._ahead += data
        return bool(data)

    def _sized_body(self, size: int) -> Iterator[memoryview]:
        """Yield the blocks of a body of known size, each valid until the next one."""
        while size:
            if self._ahead:
                block = memoryview(bytes(self._ahead[:size]))
                del self._ahead[: len(block)]
            else:
                block = self._receive(size)
            size -= len(block)
            if self.route != CONTROL:
                self._weather.receive(len(block))
                self._meter.received(self.route, len(block))
            yield block

    def _receive(self, size: int) -> memoryview:
        """Receive up to `size` bytes into the buffer of the connection."""
        if self._buffer is None:
            self._buffer = bytearray(_BLOCK)
        room = memoryview(self._buffer)[: min(size, self._weather.block(_BLOCK))]
        try:
            count = self._connection.recv_into(room, 0, socket.MSG_WAITALL)
        except OSError:
            raise _HangUp from None
        if not count:
            raise _HangUp
        return room[:count]

    def _chunked_body(self) -> Iterator[memoryview]:
        """Yield the blocks of a body with chunked transfer encoding."""
        while size := int(self._text_line().partition(b";")[0], 16):
            yield from self._sized_body(size)
            self._text_line()
        while self._text_line():
            pass

    def _text_line(self) -> bytes:
        """Receive a line; return it without its end."""
        while (end := self._ahead.find(b"\r\n")) < 0:
            if len(self._ahead) > _MAX_HEAD or not self._read_ahead():
                raise _HangUp
        text = bytes(self._ahead[:end])
        del self._ahead[: end + 2]
        return text
