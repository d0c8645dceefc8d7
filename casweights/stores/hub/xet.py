"""Bytes in and out of Xet storage, through hf_xet."""

from __future__ import annotations

import os
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from casweights.errors import ErrorCode, IntegrityError
from casweights.stores.base import truncated
from casweights.stores.hub.api import hub_errors, is_refused, unreachable
from casweights.stores.hub.client import xet
from casweights.stores.hub.locators import XetLocator
from casweights.stores.hub.watch import watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.stores.base import Parts
    from casweights.stores.hub.api import Grant, HubApi
    from casweights.system.buffers import Buffer

_BLOCK = 1 << 20  # bytes up to which small parts are joined, because each block is a call
# Packs are new and coded close to their entropy: looking for known parts and compressing is vain.
# Failures are few attempts here and the rest `RetryStore`'s; memory is bounded by our own reads.
_CONFIG: dict[str, object] = {
    "xorb.compression_policy": "none",
    "deduplication.global_dedup_query_enabled": False,
    "telemetry.enabled": False,  # each upload would wait for it
    "client.connect_timeout": "10s",
    "client.retry_max_attempts": 2,
    "client.retry_base_delay": "300ms",
    "client.retry_max_duration": "20s",
    "client.ac_initial_download_concurrency": 32,
    "client.ac_initial_upload_concurrency": 8,
    "reconstruction.download_buffer_size": 128_000_000,
    "reconstruction.download_buffer_perfile_size": 32_000_000,
    "reconstruction.download_buffer_limit": 256_000_000,
    "reconstruction.min_prefetch_buffer": 16_000_000,
    "reconstruction.min_reconstruction_fetch_size": 32_000_000,
}
_lock = threading.Lock()
_sessions: dict[tuple[int, float | None], Any] = {}  # a forked child cannot use its parent's
_memory: str | None = None  # where hf_xet remembers what it sent; None for its usual folder


def _forget_lock() -> None:
    """A thread that had it when this process was forked is not here to release it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


def _session(read_timeout: float | None = None) -> Any:
    """The client, one for the whole process.

    Args:
        read_timeout: Seconds within which each answer must begin, and go on. Counted from when a
            request is begun, so uploads cannot have it. A download that is cancelled waits for
            its requests to end nevertheless, so downloads must have it.
    """
    hf_xet = xet()
    key = (os.getpid(), read_timeout)
    with _lock:
        if key not in _sessions:
            for other in [other for other in _sessions if other[0] != os.getpid()]:
                del _sessions[other]
            options = dict(_CONFIG)
            if read_timeout is not None:
                options["client.read_timeout"] = f"{round(read_timeout * 1000)}ms"
            if _memory is not None:
                options["shard.cache_subdir"] = _memory
            known = hf_xet.XetConfig()
            options = {name: value for name, value in options.items() if name in set(known.keys())}
            _sessions[key] = hf_xet.XetSession(known.with_config(options))
        return _sessions[key]


def _retire(session: Any, error: Exception) -> None:
    """Let the next one take a new session: in hf_xet 1.6 an error stays with it for ever.

    hf_xet remembers for weeks, in a folder of its cache, what the storage has, and does not send it
    again. Where the storage has freed it since, the list of parts of every new file is refused.
    Sessions after such a refusal begin without that memory.
    """
    global _memory
    with _lock:
        if _refuses_parts(error):
            _memory = f"shard-cache-{uuid.uuid4().hex}"
        for key in [key for key, known in _sessions.items() if known is session]:
            del _sessions[key]


def _refuses_parts(error: Exception) -> bool:
    text = str(error)
    return "status client error" in text and text.endswith("/shards")


class _Downloads(NamedTuple):
    """What downloads share.

    Attributes:
        process: The process that it belongs to.
        grant: What it began with.
        group: The connection.
    """

    process: int
    grant: Grant
    group: Any


class XetStorage:
    """Uploads and downloads for one bucket.

    Args:
        api: For leave to use the storage.
        stall: Seconds after which a transfer that moves nothing is given up.
    """

    def __init__(self, api: HubApi, stall: float) -> None:
        self._api = api
        self._stall = stall
        self._lock = threading.Lock()
        self._downloads: _Downloads | None = None
        self._expecting = False

    def upload(self) -> XetUpload:
        """Begin to make bytes durable, which have no path yet and which nobody sees."""
        return XetUpload(self._api, self._stall)

    def download(self, locator: XetLocator, start: int, out: memoryview, name: str) -> None:
        """Fill `out` with bytes from offset `start` on.

        Raises:
            NotFoundError: The storage does not have them.
            StoreError: They did not arrive.
        """
        if not out:
            return
        with hub_errors(self._api.where, name):
            group = self._group()
            try:
                done = _fill(group, locator, start, out, self._stall)
            except Exception as error:
                if not is_refused(error):
                    raise
                done = 0
            if done < len(out):  # hf_xet may also end a stream where it is refused
                self._leave(group)
                done = _fill(self._group(), locator, start, out, self._stall)
        if done < len(out):
            raise truncated(name)
        if done > len(out):
            raise IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{name}: too many bytes")

    def expect_downloads(self) -> None:
        """Ask for leave to read in the background, which takes a request, unless that was done."""
        if not self._expecting:
            self._expecting = True
            threading.Thread(target=self._ask, name="casweights-grant", daemon=True).start()

    def _ask(self) -> None:
        with suppress(Exception):  # who needs it asks again, and hears of it
            self._api.grant("read")

    def _group(self) -> Any:
        """Downloads share one connection to the storage, which renews its grant by itself."""
        with self._lock:
            if self._downloads is None or self._downloads.process != os.getpid():
                grant = self._api.grant("read")
                group = _session(self._stall).new_download_stream_group(**access(self._api, grant))
                self._downloads = _Downloads(os.getpid(), grant, group)
            return self._downloads.group

    def _leave(self, group: Any) -> None:
        """Let the next download take a new connection and a new grant."""
        with self._lock:
            if self._downloads is not None and self._downloads.group is group:
                self._api.forget(self._downloads.grant)
                self._downloads = None


class XetUpload:
    """Bytes on their way into Xet storage. `XetStorage.upload` makes it.

    First comes any number of calls of `send`, then one of `finish`: only then are the bytes
    durable. The first `send` asks for leave to write. After an error, and after `abandon`, it can
    do nothing more. One thread uses it; another one, of its own, ends an upload that stalls.
    """

    def __init__(self, api: HubApi, stall: float) -> None:
        self._api = api
        self._stall = stall
        self._session: Any = None
        self._commit: Any = None
        self._ending = ExitStack()  # what the end of the upload calls, whether good or bad

    def send(self, parts: Parts) -> XetLocator:
        """Take bytes in.

        Returns:
            Where they will lie.

        Raises:
            StoreError: They did not arrive.
        """
        with self._ended_by_errors():
            if self._commit is None:
                self._begin()
            stream = self._commit.start_upload_stream(sha256=xet().SKIP_SHA256)
            for block in _blocks(parts):
                stream.write(block)
            info = stream.finish().xet_info
            return XetLocator(info.hash, info.file_size)

    def finish(self) -> None:
        """Make everything durable that was taken in.

        Raises:
            StoreError: Something did not arrive.
        """
        with self._ended_by_errors():
            self._ending.close()

    def abandon(self) -> None:
        """Stop the upload, unless it has ended."""
        with suppress(Exception), self._ending:
            raise TimeoutError("the upload is given up")  # which hf_xet's block ends with

    def _begin(self) -> None:
        grant = self._ending.enter_context(_upload_grant(self._api))
        self._session = _session()
        commit = self._session.new_upload_commit(**access(self._api, grant))
        self._ending.enter_context(watched(lambda: _moved(commit), commit.abort, self._stall))
        self._commit = self._ending.enter_context(commit)

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """End the upload by an error, as hf_xet and the watch over it name that error."""
        with hub_errors(self._api.where):
            try:
                with ExitStack() as on_error:
                    on_error.push(self._ending)
                    yield
                    on_error.pop_all()
            except Exception as error:
                _retire(self._session, error)
                raise


@contextmanager
def _upload_grant(api: HubApi) -> Iterator[Grant]:
    """A grant, which is forgotten if the storage refuses it.

    The error then is that of what may go well when tried again, unless the grant was new.
    """
    begin = time.monotonic()
    grant = api.grant("write")
    try:
        yield grant
    except Exception as error:
        if not is_refused(error):
            raise
        api.forget(grant)
        if grant.asked >= begin:
            raise
        raise unreachable(api.where, f"a grant has ended ({error})") from error


def access(api: HubApi, grant: Grant) -> dict[str, Any]:
    """What hf_xet is told of a grant."""
    headers = api.headers
    return {
        "endpoint": grant.endpoint,
        "token": grant.token,
        "token_expiry_unix_secs": int(time.time() + grant.seconds_left),
        "token_refresh_url": grant.renew_url,
        "token_refresh_headers": headers,
        "custom_headers": {k: v for k, v in headers.items() if k.lower() != "authorization"},
    }


def _fill(group: Any, locator: XetLocator, start: int, out: memoryview, stall: float) -> int:
    """Fill `out` with bytes from offset `start` on; how many bytes came, which may be too many."""
    done = 0
    stream = group.download_stream(
        xet().XetFileInfo(locator.hash, locator.size), start, start + len(out)
    )
    with watched(lambda: done, stream.cancel, stall):
        for block in stream:
            if done + len(block) > len(out):
                return done + len(block)
            out[done : done + len(block)] = block
            done += len(block)
    return done


def _moved(commit: Any) -> tuple[int, int]:
    """How far an upload is: bytes taken in, and bytes sent."""
    progress = commit.progress()
    return progress.total_bytes_completed, progress.total_transfer_bytes_completed


def _blocks(parts: Parts) -> Iterator[bytes]:
    """Parts as they come, the small ones joined."""
    small: list[Buffer] = []
    size = 0
    for part in parts:
        if size + len(part) > _BLOCK and small:
            yield b"".join(small)
            small, size = [], 0
        if len(part) >= _BLOCK:
            yield bytes(part)
        else:
            small.append(part)
            size += len(part)
    if small:
        yield b"".join(small)
