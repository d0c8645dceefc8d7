"""The Hub's HTTP interface, through huggingface_hub's session, token and conventions.

Each request is sent once. Only `RetryStore` repeats requests, so that one budget of time covers
all libraries involved.
"""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from casweights.errors import CasweightsError, ErrorCode, NotFoundError, StoreError
from casweights.stores.base import check_size, missing
from casweights.stores.hub.client import xet
from casweights.stores.hub.locators import XetLocator
from casweights.system.files import permanent_code
from casweights.system.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Line = dict[str, Any]  # one operation of a batch
_MARGIN = 60.0  # seconds; a grant that ends sooner is renewed, since transfers take a while
_PAGE = 1000  # items that one request may name
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_OS_ERROR = re.compile(r"\(os error (\d{1,4})\)")
_REFUSED = ("(401 Unauthorized)", "(403 Forbidden)")
_STREAM_GONE = "(404 Not Found)"  # the only sign in errors of hf_xet's streams for missing bytes


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a bucket.

    Attributes:
        path: Path of the file in the bucket.
        locator: Locator of its bytes in Xet storage.
        created: Time at which the Hub registered the file, in microseconds since 1970; 0 if
            unknown.
    """

    path: str
    locator: XetLocator
    created: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to upload to or download from Xet storage for a limited time.

    Attributes:
        endpoint: URL of the storage server.
        token: Token for that server.
        asked: Time of the request for the grant, in seconds of the monotonic clock.
        lifetime: Seconds from that request until the grant ends.
        renew_url: URL that issues the next grant.
    """

    endpoint: str
    token: str
    asked: float
    lifetime: float
    renew_url: str

    @property
    def seconds_left(self) -> float:
        """Seconds until the grant ends; negative if it has ended."""
        return self.asked + self.lifetime - time.monotonic()


class HubApi:
    """Requests to the Hub about one bucket, or about a repository.

    Args:
        bucket: Name of the bucket, as ``"namespace/name"``.
        endpoint: URL of the Hub; by default huggingface_hub's own.
        token: Access token; by default the one that huggingface_hub finds.
        timeout: Seconds without an answer after which a request fails.

    Attributes:
        bucket: Name of the bucket.
        where: Kind and name of the bucket or repository, for error messages.
        endpoint: URL of the Hub, without a slash at the end.
        timeout: Seconds without an answer after which a request fails.
    """

    def __init__(
        self,
        bucket: str,
        endpoint: str | None = None,
        token: str | None = None,
        timeout: float = 20.0,
    ) -> None:
        from huggingface_hub import constants

        self.bucket = bucket
        self.where = f"bucket {bucket}"
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self._token = token
        self.timeout = timeout
        self._url = f"{self.endpoint}/api/buckets/{bucket}"
        self._grants: dict[str, Grant] = {}
        self._lock = threading.Lock()

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request: the token, and the name and version of this library."""
        from huggingface_hub.utils._headers import build_hf_headers

        return build_hf_headers(
            token=self._token, library_name="casweights", library_version=__version__
        )

    def request(self, method: Any, url: str, **options: Any) -> Any:
        """Send one request, and return its response if that is a success.

        Args:
            method: HTTP method.
            url: URL to request.
            **options: Arguments of the session's ``request``, and ``accepted``: status codes of
                errors whose response is returned like a success.

        Raises:
            StoreError: The Hub cannot be reached (``unreachable``), or refuses the request.
            NotFoundError: The bucket or file does not exist.
        """
        from huggingface_hub import get_session, hf_raise_for_status

        headers = {**self.headers, **options.pop("headers", {})}
        accepted = options.pop("accepted", ())
        with hub_errors(self.where):
            response = get_session().request(
                method, url, headers=headers, timeout=self.timeout, **options
            )
            if response.status_code not in accepted:
                hf_raise_for_status(response)
        return response

    def create_bucket(self) -> None:
        """Create the bucket as a private one, unless it exists."""
        try:
            self.request("POST", self._url, json={"visibility": "private"}, accepted=(409,))
        except StoreError as error:
            # A token may be refused because it must not create buckets, also where one exists.
            if error.code is not ErrorCode.NO_PERMISSION:
                raise
            try:
                self.request("GET", self._url)
            except NotFoundError:
                raise error from None

    def files(self, paths: Sequence[str]) -> dict[str, HubFile]:
        """Return the existing ones among these files, by path."""
        found: dict[str, HubFile] = {}
        for n in range(0, len(paths), _PAGE):
            body = {"paths": list(paths[n : n + _PAGE])}
            response = self.request("POST", f"{self._url}/paths-info", json=body)
            found.update((file.path, file) for file in map(_file, response.json()))
        return found

    def tree(self, prefix: str) -> Iterator[HubFile]:
        """Yield all files whose paths begin with `prefix`."""
        url = f"{self._url}/tree" + (f"/{quote(prefix, safe='')}" if prefix else "")
        return map(_file, self.files_below(url, recursive="true", limit=_PAGE))

    def files_below(self, url: str | None, **params: Any) -> Iterator[dict[str, Any]]:
        """Yield the JSON entries of the files in a listing, which is requested page by page."""
        options = {"params": params}
        while url is not None:
            response = self.request("GET", url, **options)
            yield from (item for item in response.json() if item["type"] == "file")
            url = response.links.get("next", {}).get("url")
            options = {}

    def batch(self, operations: Sequence[Line]) -> dict[str, str]:
        """Carry out operations in order, as `add_line`, `copy_line` and `delete_line` return them.

        Returns:
            Error messages of the refused operations, by path.
        """
        refused: dict[str, str] = {}
        for n in range(0, len(operations), _PAGE):
            lines = b"".join(json.dumps(op).encode() + b"\n" for op in operations[n : n + _PAGE])
            response = self.request(
                "POST",
                f"{self._url}/batch",
                content=lines,
                headers={"Content-Type": "application/x-ndjson"},
                accepted=(422,),
            )
            refused.update((item["path"], item["error"]) for item in response.json()["failed"])
        return refused

    def read(self, path: str, limit: int) -> bytes:
        """Return a whole file of at most `limit` bytes, by its path and without a locator.

        Raises:
            NotFoundError: The file does not exist.
            IntegrityError: The file is larger.
        """
        url = f"{self.endpoint}/buckets/{self.bucket}/resolve/{quote(path)}"
        return self.read_url(url, path, limit)

    def read_end(self, path: str, most: int) -> tuple[bytes, XetLocator | int]:
        """Return the last `most` bytes of a file, by its path and without a locator.

        Returns:
            The bytes, and the file's locator, or its size if the Hub does not state the locator.

        Raises:
            NotFoundError: The file does not exist.
            IntegrityError: The file is larger, and the Hub sends all of it.
        """
        url = f"{self.endpoint}/buckets/{self.bucket}/resolve/{quote(path)}"
        data, responses = self._read_url(url, path, most, {"Range": f"bytes=-{most}"})
        stated = responses[-1].headers.get("Content-Range", "").rpartition("/")[2]
        size = int(stated) if stated.isdecimal() else len(data)
        hashes = [found for r in responses if (found := r.headers.get("X-Xet-Hash"))]
        return data, XetLocator(hashes[0], size) if hashes else size

    def read_url(self, url: str, name: str, limit: int) -> bytes:
        """Return a whole file of the Hub by its URL; `name` stands for it in errors.

        Raises:
            NotFoundError: The file does not exist.
            IntegrityError: The file is larger than `limit` bytes.
        """
        return self._read_url(url, name, limit, {})[0]

    def read_range(self, url: str, name: str, start: int, size: int) -> memoryview:
        """Return a range of a file of the Hub by its URL; `name` stands for it in errors.

        Raises:
            NotFoundError: The file does not exist, or ends before the range.
            IntegrityError: The Hub sends more than the range, and the file up to its end is larger.
        """
        extra = {"Range": f"bytes={start}-{start + size - 1}"}
        data, responses = self._read_url(url, name, start + size, extra)
        is_whole = responses[-1].status_code == 200  # the server knows no ranges
        return memoryview(data)[start : start + size] if is_whole else memoryview(data)

    def _read_url(
        self, url: str, name: str, limit: int, extra: dict[str, str]
    ) -> tuple[bytes, list[Any]]:
        """Return the body of at most `limit` bytes, and the responses, the last one's body."""
        from huggingface_hub import get_session, hf_raise_for_status

        headers = {**self.headers, "Accept-Encoding": "identity", **extra}
        with (
            hub_errors(self.where, name),
            get_session().stream("GET", url, headers=headers, timeout=self.timeout) as response,
        ):
            if response.status_code == 416 and "Range" in extra:  # the file is empty
                return b"", [*response.history, response]
            if response.status_code >= 400:
                response.read()
                hf_raise_for_status(response)
            check_size(name, int(response.headers.get("Content-Length", 0)), limit)
            data = bytearray()
            for block in response.iter_bytes():
                data += block
                check_size(name, len(data), limit)
        return bytes(data), [*response.history, response]

    def grant(self, kind: str) -> Grant:
        """Return a grant to ``"read"`` or ``"write"``. The same one is returned until it ends."""
        with self._lock:
            known = self._grants.get(kind)
            if known is None or known.seconds_left < _MARGIN:
                known = self._grants[kind] = self._new_grant(kind)
            return known

    def _new_grant(self, kind: str) -> Grant:
        url, asked = f"{self._url}/xet-{kind}-token", time.monotonic()
        response = self.request("GET", url)
        answer = response.json()
        lifetime = int(answer["exp"]) - _server_time(response)
        return Grant(answer["casUrl"], answer["accessToken"], asked, lifetime, url)

    def forget(self, grant: Grant) -> None:
        """Drop a grant that the storage has refused, so that `grant` requests another one."""
        with self._lock:
            self._grants = {k: known for k, known in self._grants.items() if known is not grant}


def _server_time(response: Any) -> float:
    """Return the time of a response by the server's clock, in seconds since 1970.

    Grants end by that clock. This machine's clock may be wrong, so it is used only if the response
    has no date.
    """
    try:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def add_line(path: str, locator: XetLocator) -> Line:
    """Return the operation that gives uploaded bytes a path."""
    mtime = time.time_ns() // 1_000_000
    return {"type": "addFile", "path": path, "xetHash": locator.hash, "mtime": mtime}


def copy_line(path: str, locator: XetLocator, source_bucket: str) -> Line:
    """Return the operation that gives bytes of another bucket a path in this one."""
    return {
        **add_line(path, locator),
        "type": "copyFile",
        "sourceRepoType": "bucket",
        "sourceRepoId": source_bucket,
    }


def delete_line(path: str) -> Line:
    """Return the operation that deletes a path."""
    return {"type": "deleteFile", "path": path}


def _file(item: dict[str, Any]) -> HubFile:
    created = item.get("uploadedAt")
    moment = datetime.fromisoformat(created) if created else None
    microseconds = int(moment.timestamp() * 1e6) if moment else 0
    return HubFile(item["path"], XetLocator(item["xetHash"], int(item["size"])), microseconds)


@contextmanager
def hub_errors(where: str, name: str = "") -> Iterator[None]:
    """Turn errors of huggingface_hub and hf_xet in a ``with`` block into ours.

    Args:
        where: Kind and name of the bucket or repository, for the message.
        name: Name of the requested object, if there is one.
    """
    try:
        yield
    except CasweightsError:
        raise
    except Exception as error:
        ours = _translated(error, where, name)
        if ours is None:
            raise
        raise ours from error


def _translated(error: Exception, where: str, name: str) -> CasweightsError | None:
    from huggingface_hub.errors import (
        BucketNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    object_error = xet().XetObjectNotFoundError
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OfflineModeIsEnabled):
        return StoreError(
            ErrorCode.OFFLINE,
            f"{where} of the Hub was not accessed, because huggingface_hub is in offline mode: "
            "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to use it",
        )
    if (local := _local_fault(error, text)) is not None:
        return StoreError(
            local,
            f"the client of the Hub cannot write its own files on this machine: {text}. Set "
            "HF_HOME or TMPDIR to a folder that you may write to and that has free space",
        )
    if status in (401, 403) or isinstance(error, PermissionError) or is_refused(error):
        return StoreError(
            ErrorCode.NO_PERMISSION,
            f"{where} of the Hub does not permit this request: log in with `hf auth login`, or set "
            f"HF_TOKEN to a token with read access, or write access if you write ({text})",
        )
    if isinstance(error, RepositoryNotFoundError | BucketNotFoundError):
        return NotFoundError(
            ErrorCode.STORE_NOT_FOUND,
            f"the Hub has no {where}, or your token may not see it: "
            f"{'create it with `casweights init`, or ' if where.startswith('bucket') else ''}"
            "check with `hf auth whoami` who you are logged in as",
        )
    is_gone = isinstance(error, ConnectionError) and _STREAM_GONE in text
    if isinstance(error, object_error) or is_gone or status in (404, 416):
        return missing(name or where)
    if status is not None and status not in _TRANSIENT:
        return StoreError(ErrorCode.IO_FAILED, f"{where} of the Hub refuses a request: {text}")
    if isinstance(error, OSError | RuntimeError | _http_library().HTTPError):
        return unreachable(where, text)
    return None


def is_refused(error: Exception) -> bool:
    """Return whether the storage refused a grant. Some errors of hf_xet only say so in the text."""
    is_quoted = isinstance(error, ConnectionError) and any(code in str(error) for code in _REFUSED)
    return is_quoted or isinstance(error, xet().XetAuthenticationError)


def _local_fault(error: Exception, text: str) -> ErrorCode | None:
    """Return our code for an error of this machine's own disk, which no retry cures; else None.

    hf_xet states the system's error number only in the text.
    """
    if not isinstance(error, OSError | RuntimeError):
        return None
    quoted = _OS_ERROR.search(text)
    number = int(quoted[1]) if quoted else getattr(error, "errno", None)
    return permanent_code(number)


def unreachable(where: str, why: str) -> StoreError:
    """Return the error for a failure that a retry may cure."""
    return StoreError(ErrorCode.UNREACHABLE, f"{where} of the Hub cannot be reached: {why}")


def _http_library() -> Any:
    """Return the module of the HTTP client that huggingface_hub uses: httpx or a variant of it."""
    from huggingface_hub import get_session

    return import_module(type(get_session()).__module__.partition(".")[0])
