"""TRL's asynchronous GRPO: its weights go to vLLM servers through a store.

Needs no import of TRL: `CasweightsWeightTransfer` is a ``WeightTransferProtocol`` by its methods.
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
    "the server needs VLLM_SERVER_DEV_MODE=1, casweights installed beside it, and "
    """--weight-transfer-config '{"backend": "casweights"}'"""
)
_REFUSED = ErrorCode.IO_FAILED  # the server has answered, and no time-out has passed
_POLL_SECONDS = 0.5  # between two looks whether a server is ready
_HEALTH_SECONDS = 5.0  # patience with the answer to one look
_MAX_ANSWER = 500  # characters of a server's answer that an error quotes


class CasweightsWeightTransfer:
    """Brings the policy of an ``AsyncGRPOTrainer`` to vLLM servers, as versions of a store.

    Every sync is published to a branch while the servers go on generating. Once it is durable,
    each server is paused and told the version's ID; it fetches what changed and verifies it before
    it changes a weight. Servers are told at the same time. TRL makes one on every rank and uses
    that of rank 0, so nothing is opened before `init_weight_transfer`.

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
        """Remember where to publish and whom to tell.

        Args:
            store: Where versions go: an open store, or how to open one.
            branch: The branch that each version becomes the head of.
            servers: Base URLs of vLLM servers. With none, replicas follow the branch themselves.
            server_store: How the servers open the store, if not as here.
            on_failure: What to do if some servers did not take a version. Those that did are
                resumed, the others stay paused until they take a later one. ``"raise"`` then
                raises; ``"continue"`` warns, and raises only if no server has taken it.
            cast: Dtypes to publish in, see `casweights.Publisher`.
            extra: A directory whose other files go with every version.
            compression: See `Repository.commit`.
            control_timeout: Seconds for a server to pause, resume and prepare.
            transfer_timeout: Seconds for a server to fetch and apply a version.
            start_timeout: Seconds for a server to come up.
            reporter: Receives what each version took.
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
        """The newest durable version of this run; None before the first and after `destroy`."""
        return self._publisher.version if self._publisher else None

    def init_weight_transfer(self) -> None:
        """Open the store, wait for the servers and prepare them.

        Raises:
            NotFoundError: There is no such store.
            CasweightsError: A server does not come up in time, or cannot receive versions.
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
        """Nothing yet: `send_weights` pauses the servers once the version is durable."""

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Publish a version and bring it to every server.

        Args:
            iterator: Names and full tensors. Those on an accelerator are copied to the host one
                by one, those on the host are read where they are.

        Raises:
            InvalidInputError: `init_weight_transfer` was not called.
            StoreError: The version could not be stored; no server was touched.
            CasweightsError: A server did not take the version, see `on_failure`.
        """
        if self._publisher is None or self._opened is None:
            raise InvalidInputError(ErrorCode.BAD_STATE, "call init_weight_transfer() first")
        self._publisher.publish(self._gather(iterator), step=self._syncs)
        self._publisher.wait()
        self._syncs += 1
        version = self._publisher.version
        if version is None:
            raise InvalidInputError(ErrorCode.BAD_STATE, "there were no weights to publish")
        store = self._server_store or self._opened.repository.url
        failures = self._each(lambda server: server.update(store, version))
        if failures:
            self._failed(version, failures)

    def resume(self) -> None:
        """Let every server that has the newest version go on.

        Raises:
            CasweightsError: A server does not answer.
        """
        for server, error in self._each(VLLMServer.resume):
            raise CasweightsError(
                error.code, f"{server.url} has the new version but does not go on: {error}"
            ) from error

    def destroy(self) -> None:
        """Wait for the last version to be durable and let go of the store; servers keep theirs."""
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
        return {name: self._on_host(name, tensor) for name, tensor in iterator}

    def _on_host(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
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
        """Do it to all servers at once; those where it failed, and why."""
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
        reasons = "; ".join(f"{server.url}: {error}" for server, error in failures)
        message = f"{len(failures)} of {len(self._servers)} servers stay paused without {version}"
        if self._on_failure == "continue" and len(failures) < len(self._servers):
            _log.warning("%s: %s", message, reasons)
            return
        self._each(VLLMServer.resume)
        raise CasweightsError(failures[0][1].code, f"{message}: {reasons}")


class VLLMServer:
    """A vLLM server with the engine of `casweights.integrations.vllm`.

    Attributes:
        url: Its base URL.
        held: The version that its last update ended with; None if that is not known, because
            there was none or it failed.
    """

    def __init__(
        self,
        url: str,
        *,
        control_timeout: float = 300.0,
        transfer_timeout: float = 1800.0,
        start_timeout: float = 240.0,
    ) -> None:
        """Remember where it is; the time-outs are those of `CasweightsWeightTransfer`.

        Raises:
            InvalidInputError: That is not a URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"{url!r} is not a server's URL, as http://host:8000"
            )
        self.url = url.rstrip("/")
        self.held: SnapshotId | None = None
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._host, self._prefix = parts.netloc, parts.path.rstrip("/")
        self._control, self._transfer = control_timeout, transfer_timeout
        self._start = start_timeout
        self._unfinished = False

    def prepare(self, store: str, branch: str = DEFAULT_BRANCH) -> None:
        """Wait until the server is up, and let it get ready with the head of the branch.

        Raises:
            CasweightsError: It does not come up in time, or cannot receive versions.
        """
        self._wait_until_up()
        info = {"store": store, "branch": branch}
        self._call("/init_weight_transfer_engine", {"init_info": info}, self._transfer)

    def update(self, store: str, version: SnapshotId) -> None:
        """Pause the server and bring it to a version; it is paused afterwards.

        The server is told what it should hold now. If it does not, or fails otherwise, it is asked
        once more to go there from whatever it holds.

        Raises:
            CasweightsError: It failed. Its engine has kept what it had, or knows that it has not.
        """
        held, self.held = self.held, None
        self._call("/pause?mode=keep", None, self._control)
        try:
            self._transact(store, version, held)
        except CasweightsError as error:
            if held is None or error.code is not _REFUSED:
                raise
            _log.warning("%s did not go on from %s: %s", self.url, held, error)
            self._transact(store, version, None)
        self.held = version

    def resume(self) -> None:
        """Let it go on, if it holds what it was last told to.

        Raises:
            CasweightsError: It does not answer.
        """
        if self.held is not None:
            self._call("/resume", None, self._control)

    def _transact(self, store: str, version: SnapshotId, held: SnapshotId | None) -> None:
        update = {"store": store, "snapshot": str(version), "expect": str(held) if held else None}
        if self._unfinished:
            self._abandon()
        self._unfinished = True
        self._call("/start_weight_update", {"is_checkpoint_format": True}, self._control)
        self._call("/update_weights", {"update_info": update}, self._transfer)
        self._call("/finish_weight_update", {"weight_version": str(version)}, self._transfer)
        self._unfinished = False

    def _abandon(self) -> None:
        """End an update that failed in those workers where it did not; others refuse to."""
        try:
            self._call("/finish_weight_update", None, self._control)
        except CasweightsError as error:
            _log.debug("%s: no update was left to end: %s", self.url, error)

    def _wait_until_up(self) -> None:
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
        connection = self._connection(self._host, timeout=timeout)
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        try:
            connection.request(method, self._prefix + path, data, headers)
            response = connection.getresponse()
            answer = response.read().decode("utf-8", "replace")
        except (OSError, HTTPException) as error:  # time-outs are OSErrors
            raise CasweightsError(
                ErrorCode.UNREACHABLE, f"no answer to {path} within {timeout:g} s: {error!r}"
            ) from error
        finally:
            connection.close()
        if response.status != HTTPStatus.OK:
            raise CasweightsError(
                _REFUSED, f"{path} was answered with {response.status}: {answer[:_MAX_ANSWER]}"
            )
