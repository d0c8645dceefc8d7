"""TRL's asynchronous GRPO: transfer of weights to vLLM servers through a store.

The module does not import TRL: `CasweightsWeightTransfer` implements ``WeightTransferProtocol`` by
its methods alone.
"""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from casweights.config import DEFAULT_BRANCH
from casweights.errors import CasweightsError, ErrorCode, InvalidInputError
from casweights.opening import opened
from casweights.sync.publisher import Publisher

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from casweights.config import Compression
    from casweights.events import Reporter
    from casweights.ids import SnapshotId
    from casweights.opening import OpenedStore, StoreLike

_log = logging.getLogger(__name__)
_HINT = (
    "the server needs VLLM_SERVER_DEV_MODE=1, casweights in its environment, and "
    """--weight-transfer-config '{"backend": "casweights"}'"""
)
_REFUSED = ErrorCode.IO_FAILED  # the server answered with an error, so it is reachable
_POLL_SECONDS = 0.5  # pause between two health checks of a server
_HEALTH_SECONDS = 5.0  # time limit of one health check
_MAX_ANSWER = 500  # characters of a server's answer that an error quotes


class CasweightsWeightTransfer:
    """Brings the policy of an ``AsyncGRPOTrainer`` to vLLM servers, as versions of a store.

    Each sync publishes a version to a branch while the servers continue to generate. Once the
    version is durable, all servers are paused at the same time, and receive its ID. Each one
    fetches the changes and verifies them before it changes a weight.

    TRL creates a transfer on every rank, and uses that of rank 0 alone, so no store is opened
    before `init_weight_transfer`. TRL then calls, for each sync, `pause`, `send_weights` and
    `resume`, and `destroy` at the end.

    Example:
        >>> transfer = CasweightsWeightTransfer(
        ...     "hf://buckets/me/weights", servers=["http://replica-1:8000", "http://replica-2:8000"]
        ... )
        >>> trainer = AsyncGRPOTrainer(model, ..., weight_transfer=transfer)
    """

    def __init__(
        self,
        store: StoreLike,
        branch: str = DEFAULT_BRANCH,
        *,
        servers: Sequence[str] = (),
        server_store: str | None = None,
        on_failure: Literal["raise", "continue"] = "raise",
        cast: Mapping[str, torch.dtype] | None = None,
        extra: str | os.PathLike[str] | None = None,
        compression: Compression = "auto",
        control_timeout: float = 300.0,
        transfer_timeout: float = 1800.0,
        start_timeout: float = 240.0,
        reporter: Reporter | None = None,
    ) -> None:
        """Configure the transfer; no store is opened and no server contacted.

        Args:
            store: The store for the versions: an open store, or the path or URL of one.
            branch: The branch to move.
            servers: Base URLs of vLLM servers. Without any, replicas follow the branch themselves.
            server_store: The path or URL by which the servers open the store; by default that of
                `store`.
            on_failure: What to do if some servers fail to apply a version. The others resume, and
                the failed ones stay paused until they apply a later version. Then ``"raise"``
                raises an error, and ``"continue"`` logs a warning, unless all servers failed.
            cast: Dtypes to publish in, see `casweights.Publisher`.
            extra: A directory whose files, except weights, are part of every version.
            compression: How chunks without a base are stored, see `Repository.commit`.
            control_timeout: Seconds within which a server must pause, resume or prepare.
            transfer_timeout: Seconds within which a server must fetch and apply a version.
            start_timeout: Seconds within which a server must become ready.
            reporter: Receives `Reporter.published`.
        """
        self._where = store
        self._branch = branch
        self._server_store = server_store
        self._on_failure = on_failure
        self._make_publisher = partial(
            Publisher, cast=cast, extra=extra, compression=compression, reporter=reporter
        )
        self._servers = [
            VLLMServer(
                url,
                control_timeout=control_timeout,
                transfer_timeout=transfer_timeout,
                start_timeout=start_timeout,
            )
            for url in servers
        ]
        self._opened: OpenedStore | None = None
        self._publisher: Publisher | None = None
        self._buffers: dict[str, torch.Tensor] = {}
        self._syncs = 0

    @property
    def version(self) -> SnapshotId | None:
        """The newest durable version of the branch; None before the first and after `destroy`."""
        return self._publisher.version if self._publisher else None

    def init_weight_transfer(self) -> None:
        """Open the store, wait for the servers and prepare them.

        Raises:
            NotFoundError: The store does not exist.
            CasweightsError: A server is not ready in time, or cannot receive versions.
        """
        self._opened = opened(self._where)
        store = self._opened.repository
        self._publisher = self._make_publisher(store, self._branch)
        url = self._server_store or store.url
        for server, error in self._each(lambda server: server.prepare(url, self._branch)):
            raise CasweightsError(
                error.code, f"{server.url} cannot receive versions: {error}; {_HINT}"
            ) from error

    def pause(self) -> None:
        """Do nothing: `send_weights` pauses the servers, once the version is durable."""

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Publish a version, and make every server apply it.

        Args:
            iterator: Names and full tensors. Tensors on an accelerator are copied to the host one
                by one; tensors on the host are not copied.

        Raises:
            InvalidInputError: `init_weight_transfer` was not called.
            StoreError: The version could not be stored. No server was contacted.
            CasweightsError: A server failed to apply the version, see `on_failure`.
        """
        if self._publisher is None or self._opened is None:
            raise InvalidInputError(ErrorCode.BAD_STATE, "call init_weight_transfer() first")
        self._publisher.publish(self._gather(iterator), step=self._syncs)
        self._publisher.wait()
        self._syncs += 1
        version = self._publisher.version
        if version is None:
            raise InvalidInputError(ErrorCode.BAD_STATE, "send_weights received no weights")
        store = self._server_store or self._opened.repository.url
        failures = self._each(lambda server: server.update(store, version))
        if failures:
            self._failed(version, failures)

    def resume(self) -> None:
        """Resume every server that holds the newest version.

        Raises:
            CasweightsError: A server does not answer.
        """
        for server, error in self._each(VLLMServer.resume):
            raise CasweightsError(
                error.code, f"{server.url} has the new version, but does not resume: {error}"
            ) from error

    def destroy(self) -> None:
        """Wait until the last version is durable, and close the store. Servers keep theirs open."""
        publisher, self._publisher = self._publisher, None
        store, self._opened = self._opened, None
        self._buffers.clear()
        try:
            if publisher is not None:
                publisher.close()
        finally:
            if store is not None:
                store.close()

    def _gather(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Collect the tensors on the host."""
        # One at a time: TRL gathers the full tensor of a sharded model only for one iteration.
        return {name: self._on_host(name, tensor) for name, tensor in iterator}

    def _on_host(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor, or its copy in a buffer that is used again for each version."""
        if tensor.device.type == "cpu":
            return tensor.detach()
        buffer = self._buffers.get(name)
        if buffer is None:
            buffer = self._buffers[name] = tensor.detach().cpu()
            return buffer
        return buffer.copy_(tensor.detach())

    def _each(
        self, action: Callable[[VLLMServer], None]
    ) -> list[tuple[VLLMServer, CasweightsError]]:
        """Call a function for all servers at once; return the servers that failed, with errors."""
        if not self._servers:
            return []

        def attempt(server: VLLMServer) -> CasweightsError | None:
            try:
                action(server)
            except CasweightsError as error:
                return error
            return None

        with ThreadPoolExecutor(len(self._servers)) as pool:
            errors = pool.map(attempt, self._servers)
            return [(server, e) for server, e in zip(self._servers, errors, strict=True) if e]

    def _failed(
        self, version: SnapshotId, failures: list[tuple[VLLMServer, CasweightsError]]
    ) -> None:
        """Log or raise that some servers failed to apply a version, as `on_failure` says."""
        reasons = "; ".join(f"{server.url}: {error}" for server, error in failures)
        message = f"{len(failures)} of {len(self._servers)} servers stay paused without {version}"
        if self._on_failure == "continue" and len(failures) < len(self._servers):
            _log.warning("%s: %s", message, reasons)
            return
        self._each(VLLMServer.resume)  # TRL does not call `resume` after an error
        raise CasweightsError(failures[0][1].code, f"{message}: {reasons}")


class VLLMServer:
    """A vLLM server with the engine of `casweights.integrations.vllm`.

    Attributes:
        url: The server's base URL.
        held: The version of the last successful update; None before the first update, and after
            one that failed.
    """

    def __init__(
        self,
        url: str,
        *,
        control_timeout: float = 300.0,
        transfer_timeout: float = 1800.0,
        start_timeout: float = 240.0,
    ) -> None:
        """Configure the connection; the time-outs are those of `CasweightsWeightTransfer`.

        Raises:
            InvalidInputError: `url` is not an HTTP or HTTPS URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"a server must be a URL like http://host:8000, got {url!r}",
            )
        self.url = url.rstrip("/")
        self.held: SnapshotId | None = None
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._prefix = parts.netloc, parts.path.rstrip("/")
        self._control, self._transfer = control_timeout, transfer_timeout
        self._start = start_timeout
        self._unfinished = False  # whether an update was started and not finished

    def prepare(self, store: str, branch: str = DEFAULT_BRANCH) -> None:
        """Wait until the server is ready, and make it fetch the head of the branch.

        Raises:
            CasweightsError: The server is not ready in time, or cannot receive versions.
        """
        self._wait_until_up()
        info = {"store": store, "branch": branch}
        self._call("/init_weight_transfer_engine", {"init_info": info}, self._transfer)

    def update(self, store: str, version: SnapshotId) -> None:
        """Pause the server and bring it to a version. It stays paused afterwards.

        The request names the version that the server should hold before. If it holds another one,
        or refuses for another reason, a second request accepts any version.

        Raises:
            CasweightsError: The update failed. The server's engine holds its previous version, or
                has recorded that its version is unknown.
        """
        held, self.held = self.held, None
        self._call("/pause?mode=keep", None, self._control)
        try:
            self._transact(store, version, held)
        except CasweightsError as error:
            if held is None or error.code is not _REFUSED:
                raise
            _log.warning("%s did not continue from %s: %s", self.url, held, error)
            self._transact(store, version, None)
        self.held = version

    def resume(self) -> None:
        """Resume the server, unless its last update failed.

        Raises:
            CasweightsError: The server does not answer.
        """
        if self.held is not None:
            self._call("/resume", None, self._control)

    def _transact(self, store: str, version: SnapshotId, held: SnapshotId | None) -> None:
        """Run one update of the server, from start to finish."""
        update = {"store": store, "snapshot": str(version), "expect": str(held) if held else None}
        if self._unfinished:
            self._abandon()
        self._unfinished = True
        self._call("/start_weight_update", {"is_checkpoint_format": True}, self._control)
        self._call("/update_weights", {"update_info": update}, self._transfer)
        self._call("/finish_weight_update", {"weight_version": str(version)}, self._transfer)
        self._unfinished = False

    def _abandon(self) -> None:
        """Finish an update that failed, in those workers in which it is still in progress."""
        try:
            self._call("/finish_weight_update", None, self._control)
        except CasweightsError as error:
            _log.debug("%s: no update was left to end: %s", self.url, error)

    def _wait_until_up(self) -> None:
        """Repeat health checks until one succeeds; raise the last error after the time limit."""
        deadline = time.monotonic() + self._start
        while True:
            try:
                self._call("/health", None, min(self._control, _HEALTH_SECONDS), method="GET")
            except CasweightsError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _call(
        self, path: str, body: dict[str, Any] | None, timeout: float, method: str = "POST"
    ) -> None:
        """Send a request to the server.

        Raises:
            CasweightsError: The server does not answer within `timeout` seconds, or answers with
                an error.
        """
        connection = self._connection(self._host, timeout=timeout)
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        try:
            connection.request(method, self._prefix + path, data, headers)
            response = connection.getresponse()
            answer = response.read().decode("utf-8", "replace")
        except (OSError, HTTPException) as error:  # time-outs are OSErrors, too
            raise CasweightsError(
                ErrorCode.UNREACHABLE, f"no answer to {path} within {timeout:g} s: {error!r}"
            ) from error
        finally:
            connection.close()
        if response.status != HTTPStatus.OK:
            raise CasweightsError(
                _REFUSED, f"{path} was answered with {response.status}: {answer[:_MAX_ANSWER]}"
            )
