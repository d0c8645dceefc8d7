"""A local Hub that runs in threads of this process."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from casweights.testing.hub.access import Access
from casweights.testing.hub.bucket_routes import BucketRoutes
from casweights.testing.hub.buckets import Buckets
from casweights.testing.hub.cas import Cas
from casweights.testing.hub.cas_routes import CasRoutes, Tokens
from casweights.testing.hub.clock import Clock
from casweights.testing.hub.conditions import Conditions, Meter, Weather
from casweights.testing.hub.journal import Journal
from casweights.testing.hub.messages import (
    Answer,
    Refusal,
    Route,
    Router,
    json_answer,
)
from casweights.testing.hub.repo_routes import RepoRoutes
from casweights.testing.hub.repos import Repos
from casweights.testing.hub.server import CONTROL, HOST, Server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casweights.testing.hub.access import Right
    from casweights.testing.hub.conditions import Counts
    from casweights.testing.hub.messages import Request


class LocalHub:
    """A Hub on two ports of the loopback interface, served by threads of this process.

    Its data survive in its folder, even if the process is killed. Use it as a context manager, or
    call `close`.

    Args:
        folder: Folder for all data; None for a temporary one. Only one Hub at a time may use it.
        tokens: The right of each token. With None, tokens are not checked.
        conditions: The behaviour at the start.
        port: Port of the Hub; 0 for a free one.
        cas_port: Port of the CAS and CDN; 0 for a free one.
        users: The user who owns each token. Only the owner of a namespace may change its contents
            and see what is private there. With None, one user owns all tokens and namespaces.

    Attributes:
        folder: Folder of all data.
        url: Value for ``HF_ENDPOINT`` or ``HfApi(endpoint=...)``.
        cas_url: Address of the CAS, to which the Hub sends its clients.
        clock: The server's time, which a test can drive. Times of changes, lags of listings and
            the expiry of tokens follow it.

    Example:
        >>> with LocalHub() as hub:
        ...     hub.create_bucket("me/weights")
        ...     api = HfApi(endpoint=hub.url, token="any")
        ...     hub.conditions = Conditions(error_rate=0.1)
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
        with ExitStack() as stack:
            if folder is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="local-hub-"))
            self.folder = Path(folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open(stack, Access(tokens, users), conditions or Conditions(), (port, cas_port))
            self._resources = stack.pop_all()

    def _open(
        self,
        stack: ExitStack,
        access: Access,
        conditions: Conditions,
        ports: tuple[int, int],
    ) -> None:
        self._weather = Weather(conditions)
        self._meter = Meter()
        journal = Journal(self.folder / "journal.jsonl")
        stack.callback(journal.close)
        self.clock = clock = Clock(journal)
        self._cas = Cas(self.folder / "xorbs", journal, clock)
        self._buckets = Buckets(self._cas, journal, clock, self._weather.skew)
        repos = Repos(journal, clock)
        tables: dict[str, Clock | Cas | Buckets | Repos] = {
            "clock": clock,
            "cas": self._cas,
            "buckets": self._buckets,
            "repos": repos,
        }
        # Restore the tables before the ports accept requests.
        for event in journal.replay():
            tables[event["table"]].apply(event)
        self._cas.adopt_xorbs()
        cas_tokens = Tokens(self.folder / "secret", clock)
        bucket_routes = BucketRoutes(self._buckets, self._cas, access, cas_tokens, self._weather)
        repo_routes = RepoRoutes(repos, access)
        cas_routes = CasRoutes(self._cas, cas_tokens, self._weather)
        hub_table = [*self._control(), *bucket_routes.routes(), *repo_routes.routes()]
        hub = self._server(stack, ports[0], hub_table)
        storage = self._server(stack, ports[1], cas_routes.routes())
        self.url = f"http://{HOST}:{hub.port}"
        self.cas_url = f"http://{HOST}:{storage.port}"
        bucket_routes.url = repo_routes.url = self.url
        bucket_routes.cas_url = cas_routes.url = self.cas_url
        # Another host name: clients drop their token for the Hub only if the host changes.
        bucket_routes.cdn_url = f"http://localhost:{storage.port}"
        stack.callback(self._weather.stopping.set)
        hub.start()
        storage.start()

    def _server(self, stack: ExitStack, port: int, routes: list[Route]) -> Server:
        server = Server(port, Router(routes), self._weather, self._meter, self._free)
        stack.callback(server.close)
        return server

    def _free(self) -> None:
        """Free bytes that are due; called before each request, as no client can see it earlier."""
        now = self.conditions
        self._buckets.free(now.free_after, now.upload_grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop both servers, and delete a temporary folder."""
        self._resources.close()

    @property
    def conditions(self) -> Conditions:
        """The current behaviour, which may be set at any time."""
        return self._weather.conditions

    @conditions.setter
    def conditions(self, conditions: Conditions) -> None:
        self._weather.change(conditions)

    def counters(self) -> Counts:
        """Return the counts of requests and bytes since `reset_counters`."""
        return self._meter.counts()

    def reset_counters(self) -> None:
        """Restart the counts from zero."""
        self._meter.reset()

    def create_bucket(self, bucket: str, *, private: bool = False) -> None:
        """Create a bucket, unless it exists.

        Args:
            bucket: Its ID, as ``"namespace/name"``.
            private: Whether reading it needs a token of its owner.
        """
        self._buckets.create(bucket, private)

    def corrupt_object(self, bucket: str, path: str, place: int) -> None:
        """Flip a bit of an object, so that every reader gets the wrong byte.

        Other objects that share the damaged chunk are damaged with it.

        Args:
            bucket: ID of the bucket.
            path: Path of the object.
            place: Offset of the byte to damage.

        Raises:
            LookupError: The object does not exist or has no such byte.
        """
        entry = self._buckets.entry(bucket, path)
        if entry is None or not 0 <= place < entry.size:
            raise LookupError(f"there is no byte {place} of {path} in {bucket}")
        self._cas.corrupt(entry.hash, place)

    def _control(self) -> list[Route]:
        """The routes by which `LocalHubProcess` calls the methods of this class."""
        return [
            Route(CONTROL, "GET POST", "/_hub/conditions", self._answer_conditions),
            Route(CONTROL, "GET", "/_hub/counters", self._answer_counters),
            Route(CONTROL, "POST", "/_hub/counters/reset", self._answer_reset),
            Route(CONTROL, "POST", "/_hub/clock", self._answer_clock),
            Route(CONTROL, "POST", "/_hub/bucket", self._answer_bucket),
            Route(CONTROL, "POST", "/_hub/corrupt", self._answer_corrupt),
        ]

    def _answer_conditions(self, request: Request) -> Answer:
        if request.method == "POST":
            self.conditions = Conditions.from_json(request.read())
        return Answer(body=self.conditions.to_json().encode())

    def _answer_counters(self, _: Request) -> Answer:
        return Answer(body=self.counters().to_json().encode())

    def _answer_reset(self, _: Request) -> Answer:
        self.reset_counters()
        return json_answer({})

    def _answer_clock(self, request: Request) -> Answer:
        wish = request.json()
        if wish.get("hold"):
            self.clock.hold()
        self.clock.advance(wish.get("advance", 0))
        return json_answer({})

    def _answer_bucket(self, request: Request) -> Answer:
        wish = request.json()
        self.create_bucket(wish["bucket"], private=wish["private"])
        return json_answer({})

    def _answer_corrupt(self, request: Request) -> Answer:
        wish = request.json()
        try:
            self.corrupt_object(wish["bucket"], wish["path"], wish["place"])
        except LookupError as error:
            raise Refusal(404, str(error)) from None
        return json_answer({})
