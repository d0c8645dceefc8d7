"""Servers with vLLM's routes, whose model is a dict of tensors."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import torch

import casweights
from casweights.ids import SnapshotId
from casweights.sync.subscriber import Subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator


class Replica:
    """A server with the routes of vLLM, whose model is a dict that a `Subscriber` updates.

    Attributes:
        calls: Paths and JSON bodies, in order.
        weights: The model.
        weight_version: The value that ``GET /weight_info`` of vLLM returns.
        failures: The number of further errors for each path.
        hang: Set this event to send delayed answers.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.weight_version = "default"
        self.failures: dict[str, int] = {}
        self.paused = self.active = False
        self.hanging: set[str] = set()
        self.let_go = threading.Event()
        self._subscriber: Subscriber | None = None
        self.url = ""

    def paths(self) -> list[str]:
        return [path for path, _ in self.calls]

    def updates(self) -> list[dict[str, Any]]:
        return [body["update_info"] for path, body in self.calls if path == "/update_weights"]

    def answer(self, path: str, body: Any) -> None:
        self.calls.append((path, body))
        if path in self.hanging:
            assert self.let_go.wait(30)
        if self.failures.get(path, 0) > 0:
            self.failures[path] -= 1
            self.active = False
            raise RuntimeError("out of luck")
        match path.partition("?")[0]:
            case "/pause":
                self.paused = True
            case "/resume":
                self.paused = False
            case "/init_weight_transfer_engine":
                self._subscriber = Subscriber(body["init_info"]["store"])
            case "/start_weight_update":
                assert not self.active, "an update is under way"
                self.active = True
            case "/update_weights":
                assert self.active
                assert self.paused
                self.update(body["update_info"])
            case "/finish_weight_update":
                assert self.active, "no update is under way"
                self.active = False
                if body:
                    self.weight_version = body["weight_version"]

    def update(self, info: dict[str, Any]) -> None:
        if self._subscriber is None:
            self._subscriber = Subscriber(info["store"])
        with casweights.open(info["store"]) as store:
            target = SnapshotId.from_hex(info["snapshot"])
            if not self.weights:
                state = store.load(target)
                self.weights = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        held = SnapshotId.from_hex(info["expect"]) if info["expect"] else None
        self._subscriber.sync(self.weights, to=target, expect=held)

    def forget(self) -> None:
        """Lose all state, like a process that is started again."""
        self.close()
        self._subscriber, self.weights, self.active = None, {}, False

    def close(self) -> None:
        if self._subscriber is not None:
            self._subscriber.close()


@contextmanager
def serving(replica: Replica) -> Iterator[Replica]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            try:
                replica.answer(self.path, body)
            except Exception as error:
                status, text = 500, json.dumps({"error": repr(error)})
            else:
                status, text = 200, "{}"
            with suppress(ConnectionError):  # the client has closed the connection
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        replica.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield replica
        finally:
            replica.let_go.set()
            server.shutdown()
            thread.join()
            replica.close()
