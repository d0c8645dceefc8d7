"""Uploads to and downloads from Xet storage, through hf_xet."""

from __future__ import annotations

import os
import threading
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from casweights.errors import ErrorCode, IntegrityError
from casweights.stores.base import missing, truncated
from casweights.stores.hub.api import hub_errors, is_refused, unreachable
from casweights.stores.hub.client import xet
from casweights.stores.hub.locators import XetLocator
from casweights.stores.hub.watch import watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.stores.base import Parts
    from casweights.stores.hub.api import Grant, HubApi
    from casweights.system.buffers import Buffer

_BLOCK = 1 << 20  # bytes; smaller parts are joined, because each block costs a call
# Bytes up to which an upload begins without asking for a place. The storage may offer a faster one,
# but to ask and to confirm takes two round trips: at 1 Gbit/s, the time of some MiB.
_DIRECT_BYTES = 8 << 20
# Packs are new and coded close to their entropy, so deduplication and compression gain nothing.
# hf_xet makes few attempts, since `RetryStore` repeats calls. Buffers fit the size of our reads.
_CONFIG: dict[str, object] = {
    "xorb.compression_policy": "none",
    "deduplication.global_dedup_query_enabled": False,
    "telemetry.enabled": False,  # every upload would wait for its report
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
_REFUSAL = "status client error"  # in errors of hf_xet
_lock = threading.Lock()
# By process and options: a forked child cannot use its parent's sessions.
_sessions: dict[tuple[int, float | None, bool], Any] = {}
_memory: str | None = None  # folder in which hf_xet records what it sent; None for its default


def _forget_lock() -> None:
    """Replace the lock in a forked child, where no thread can release a held one."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


def _session(read_timeout: float | None = None, *, direct: bool = False) -> Any:
    """Return hf_xet's session, one per process and options.

    Args:
        read_timeout: Seconds without bytes of an answer after which a request fails. Downloads
            need one, because a cancelled download waits for its requests to end. Uploads must
            have none, because the time is counted from the start of the request.
        direct: Whether uploads ask for no place to send bytes to, and send them to the storage.
    """
    hf_xet = xet()
    key = (os.getpid(), read_timeout, direct)
    with _lock:
        if key not in _sessions:
            for other in [other for other in _sessions if other[0] != os.getpid()]:
                del _sessions[other]
            options = _CONFIG | {"client.legacy_direct_xorb_upload": direct}
            if read_timeout is not None:
                options["client.read_timeout"] = f"{round(read_timeout * 1000)}ms"
            if _memory is not None:
                options["shard.cache_subdir"] = _memory
            known = hf_xet.XetConfig()
            options = {name: value for name, value in options.items() if name in set(known.keys())}
            _sessions[key] = hf_xet.XetSession(known.with_config(options))
        return _sessions[key]


def _retire(session: Any, error: Exception) -> None:
    """Drop a session after an error, because in hf_xet 1.6 the session keeps the error for ever.

    hf_xet records for weeks, in a folder of its cache, which bytes the storage has, and does not
    send them again. If the storage has freed them since, it refuses the list of parts of every
    new file. After such a refusal, new sessions use an empty folder.
    """
    global _memory
    with _lock:
        if _refuses_parts(error):
            _memory = f"shard-cache-{uuid.uuid4().hex}"
        for key in [key for key, known in _sessions.items() if known is session]:
            del _sessions[key]


def _refuses_parts(error: Exception) -> bool:
    """Return whether the storage refused the list of parts of a new file."""
    text = str(error)
    return _REFUSAL in text and text.endswith("/shards")


def _refuses_direct(error: Exception) -> bool:
    """Return whether the storage refused bytes that were sent to it directly."""
    text = str(error)
    return _REFUSAL in text and "/v1/xorbs/" in text and not is_refused(error)


class _Downloads(NamedTuple):
    """The connection to the storage that downloads share.

    Attributes:
        process: ID of the process that it belongs to.
        grant: The grant that it was opened with.
        group: The download group of hf_xet.
    """

    process: int
    grant: Grant
    group: Any


class XetStorage:
    """Uploads and downloads for one bucket.

    Args:
        api: Requests about the bucket, for grants.
        stall: Seconds without progress after which a transfer fails.
    """

    def __init__(self, api: HubApi, stall: float) -> None:
        self._api = api
        self._stall = stall
        self._lock = threading.Lock()
        self._downloads: _Downloads | None = None
        self._expecting = False
        self._asks = threading.Event()

    def upload(self) -> XetUpload:
        """Begin an upload of bytes without a path, which readers do not see."""
        return XetUpload(self._api, self._stall, self._asks)

    def download(self, locator: XetLocator, start: int, out: memoryview, name: str) -> None:
        """Fill `out` with the bytes at a locator, from offset `start` on.

        Args:
            locator: Locator of the object.
            start: Offset in the object.
            out: Buffer to fill.
            name: Name of the object, for errors.

        Raises:
            NotFoundError: The storage does not have the bytes.
            IntegrityError: The storage sent fewer or more bytes.
            StoreError: The download failed.
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
            if done < len(out):  # the grant was refused: hf_xet may also just end the stream
                self._leave(group)
                done = _fill(self._group(), locator, start, out, self._stall)
            if done == 0 and self._has(locator, start, name):
                raise unreachable(self._api.where, "its storage ended an answer too early")
        if done < len(out):
            raise truncated(name)
        if done > len(out):
            raise IntegrityError(
                ErrorCode.CORRUPT_OBJECT,
                f"{name} is damaged: the storage sent more than {len(out)} bytes",
            )

    def _has(self, locator: XetLocator, start: int, name: str) -> bool:
        """Return whether the storage has the byte at an offset, by a request like hf_xet's first.

        If that request fails, hf_xet often ends the stream without an error, just as it does for an
        offset beyond the end of the bytes.

        Raises:
            NotFoundError: The storage does not have the object.
            StoreError: The storage cannot be reached, or refuses the request.
        """
        grant = self._api.grant("read")
        url = f"{grant.endpoint}/v1/reconstructions/{locator.hash}"
        headers = {"authorization": f"Bearer {grant.token}", "range": f"bytes={start}-{start}"}
        answer = self._api.request("GET", url, headers=headers, accepted=(404, 416))
        if answer.status_code == 404:
            raise missing(name)
        return bool(answer.status_code != 416)

    def expect_downloads(self) -> None:
        """Request a grant to read in the background, at the first call only."""
        if not self._expecting:
            self._expecting = True
            threading.Thread(target=self._ask, name="casweights-grant", daemon=True).start()

    def _ask(self) -> None:
        with suppress(Exception):  # a download requests it again, and raises the error
            self._api.grant("read")

    def _group(self) -> Any:
        """Return the connection that all downloads share; hf_xet renews its grant."""
        with self._lock:
            if self._downloads is None or self._downloads.process != os.getpid():
                grant = self._api.grant("read")
                group = _session(self._stall).new_download_stream_group(**access(self._api, grant))
                self._downloads = _Downloads(os.getpid(), grant, group)
            return self._downloads.group

    def _leave(self, group: Any) -> None:
        """Drop the connection and its grant, so that the next download opens a new one."""
        with self._lock:
            if self._downloads is not None and self._downloads.group is group:
                self._api.forget(self._downloads.grant)
                self._downloads = None


class XetUpload:
    """An upload to Xet storage; `XetStorage.upload` begins it.

    It goes to the storage directly if it begins with few bytes. Larger ones first ask for a place
    to send the bytes to, and so do all after the storage has refused a direct one.

    Call `send` any number of times, then `finish`, which makes the bytes durable. The first `send`
    requests a grant to write. After an error or `abandon`, the upload is unusable. Only one thread
    may use it; a second, internal thread aborts it if it stalls.

    Args:
        api: Requests about the bucket, for grants.
        stall: Seconds without progress after which the upload fails.
        asks: Set once the storage has refused a direct upload.
    """

    def __init__(self, api: HubApi, stall: float, asks: threading.Event) -> None:
        self._api = api
        self._stall = stall
        self._asks = asks
        self._session: Any = None
        self._commit: Any = None
        self._ending = ExitStack()  # closed at the end of the upload, also after an error

    def send(self, parts: Parts) -> XetLocator:
        """Send the concatenation of `parts`.

        Returns:
            The locator that the bytes will have.

        Raises:
            StoreError: The bytes could not be sent.
        """
        with self._ended_by_errors():
            if self._commit is None:
                self._begin(direct=sum(map(len, parts)) <= _DIRECT_BYTES)
            stream = self._commit.start_upload_stream(sha256=xet().SKIP_SHA256)
            for block in _blocks(parts):
                stream.write(block)
            info = stream.finish().xet_info
            return XetLocator(info.hash, info.file_size)

    def finish(self) -> None:
        """Make all sent bytes durable.

        Raises:
            StoreError: The upload failed; none of the bytes may be used.
        """
        with self._ended_by_errors():
            self._ending.close()

    def abandon(self) -> None:
        """Stop the upload, unless it has ended."""
        with suppress(Exception), self._ending:
            raise TimeoutError("the upload is abandoned")  # hf_xet's block aborts on an exception

    def _begin(self, *, direct: bool) -> None:
        grant = self._ending.enter_context(_upload_grant(self._api))
        self._session = _session(direct=direct and not self._asks.is_set())
        commit = self._session.new_upload_commit(**access(self._api, grant))
        self._ending.enter_context(watched(lambda: _moved(commit), commit.abort, self._stall))
        self._commit = self._ending.enter_context(commit)

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        """End the upload after an error in the ``with`` block, and raise it as one of ours."""
        with hub_errors(self._api.where):
            try:
                with ExitStack() as on_error:
                    on_error.push(self._ending)
                    yield
                    on_error.pop_all()
            except Exception as error:
                _retire(self._session, error)
                if not _refuses_direct(error) or self._asks.is_set():
                    raise
                self._asks.set()  # then a retry asks
                why = f"it refused a direct upload ({error})"
                raise unreachable(self._api.where, why) from error


@contextmanager
def _upload_grant(api: HubApi) -> Iterator[Grant]:
    """Yield a grant to write, and drop it if the storage refuses it.

    A refusal of an older grant is raised as `unreachable`, since a retry with a new grant may
    succeed. A refusal of a new grant is raised as it is.
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
        raise unreachable(api.where, f"the grant to write has ended ({error})") from error


def access(api: HubApi, grant: Grant) -> dict[str, Any]:
    """Return a grant as the options of hf_xet's sessions."""
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
    """Fill `out` with bytes from offset `start` on.

    Returns:
        Number of bytes that arrived; fewer or more than `len(out)` if something is wrong.
    """
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
    """Return the progress of an upload: bytes that hf_xet accepted, and bytes that it sent."""
    progress = commit.progress()
    return progress.total_bytes_completed, progress.total_transfer_bytes_completed


def _blocks(parts: Parts) -> Iterator[bytes]:
    """Yield the bytes of `parts` in order, with small parts joined into larger blocks."""
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
