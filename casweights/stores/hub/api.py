"""The Hub's HTTP interface, through huggingface_hub's session, token and conventions.

Requests are sent once: when and how often they are repeated is `RetryStore`'s affair, so that
there is one budget and not one for each library.
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

Line = dict[str, Any]  # an operation of a batch
_MARGIN = 60.0  # seconds that a grant must still be good for, since transfers take a while
_PAGE = 1000  # what one request may ask for
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_OS_ERROR = re.compile(r"\(os error (\d{1,4})\)")
_REFUSED = ("(401 Unauthorized)", "(403 Forbidden)")
_STREAM_GONE = "(404 Not Found)"  # all that hf_xet's streams tell of bytes that are not there


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a bucket.

    Attributes:
        path: Its path in the bucket.
        locator: Where its bytes lie.
        created: When the Hub registered it, in microseconds since 1970.
    """

    path: str
    locator: XetLocator
    created: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to move bytes in and out of Xet storage.

    Attributes:
        endpoint: The storage server.
        token: For that server alone.
        asked: When it was asked for, in seconds of the monotonic clock.
        lifetime: Seconds for which it is good from then on.
        renew_url: Where the next one comes from.
    """

    endpoint: str
    token: str
    asked: float
    lifetime: float
    renew_url: str

    @property
    def seconds_left(self) -> float:
        """Seconds until it ends; negative if it has."""
        return self.asked + self.lifetime - time.monotonic()


class HubApi:
    """Requests to the Hub about one bucket, or a repository beside it.

    Args:
        bucket: Its name, as ``"namespace/name"``.
        endpoint: The Hub; by default huggingface_hub's own.
        token: A token; by default the one that huggingface_hub finds.
        timeout: Seconds without an answer after which a request is given up.
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
        """What every request carries: the token, who asks."""
        from huggingface_hub.utils._headers import build_hf_headers

        return build_hf_headers(
            token=self._token, library_name="casweights", library_version=__version__
        )

    def request(self, method: Any, url: str, **options: Any) -> Any:
        """One request; its response if that is a success.

        Raises:
            StoreError: The Hub cannot be reached (``unreachable``), or does not permit it.
            NotFoundError: There is no such bucket or file.
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
        """Make the bucket, a private one, unless it is there."""
        self.request("POST", self._url, json={"visibility": "private"}, accepted=(409,))

    def files(self, paths: Sequence[str]) -> dict[str, HubFile]:
        """Those of these files that are there, by path."""
        found: dict[str, HubFile] = {}
        for n in range(0, len(paths), _PAGE):
            body = {"paths": list(paths[n : n + _PAGE])}
            response = self.request("POST", f"{self._url}/paths-info", json=body)
            found.update((file.path, file) for file in map(_file, response.json()))
        return found

    def tree(self, prefix: str) -> Iterator[HubFile]:
        """All files whose paths begin with `prefix`."""
        url = f"{self._url}/tree" + (f"/{quote(prefix, safe='')}" if prefix else "")
        return map(_file, self.files_below(url, recursive="true", limit=_PAGE))

    def files_below(self, url: str | None, **params: Any) -> Iterator[dict[str, Any]]:
        """What a listing says of files, page by page."""
        options = {"params": params}
        while url is not None:
            response = self.request("GET", url, **options)
            yield from (item for item in response.json() if item["type"] == "file")
            url = response.links.get("next", {}).get("url")
            options = {}

    def batch(self, operations: Sequence[Line]) -> dict[str, str]:
        """Carry out operations in order, as `add_line`, `copy_line` and `delete_line` make them.

        Returns:
            What was refused: the error by path.
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
        """A whole file of at most `limit` bytes, without knowing where its bytes lie.

        Raises:
            IntegrityError: It is larger.
        """
        url = f"{self.endpoint}/buckets/{self.bucket}/resolve/{quote(path)}"
        return self.read_url(url, path, limit)

    def read_url(self, url: str, name: str, limit: int) -> bytes:
        """The same for any file of the Hub; `name` is for the errors."""
        from huggingface_hub import get_session, hf_raise_for_status

        headers = {**self.headers, "Accept-Encoding": "identity"}
        with (
            hub_errors(self.where, name),
            get_session().stream("GET", url, headers=headers, timeout=self.timeout) as response,
        ):
            if response.status_code >= 400:
                response.read()
                hf_raise_for_status(response)
            check_size(name, int(response.headers.get("Content-Length", 0)), limit)
            data = bytearray()
            for block in response.iter_bytes():
                data += block
                check_size(name, len(data), limit)
        return bytes(data)

    def grant(self, kind: str) -> Grant:
        """Leave to ``"read"`` or ``"write"``, for as long as it lasts the same one."""
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
        """Ask for another grant next time, because the storage has refused this one."""
        with self._lock:
            self._grants = {k: known for k, known in self._grants.items() if known is not grant}


def _server_time(response: Any) -> float:
    """When the server answered, by the clock that its grants end by, in seconds since 1970.

    This machine's clock may be wrong; it only counts if the answer has no date.
    """
    try:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def add_line(path: str, locator: XetLocator) -> Line:
    """The operation that gives uploaded bytes a path."""
    mtime = time.time_ns() // 1_000_000
    return {"type": "addFile", "path": path, "xetHash": locator.hash, "mtime": mtime}


def copy_line(path: str, locator: XetLocator, source_bucket: str) -> Line:
    """The operation that gives bytes of another bucket a path in this one."""
    return {
        **add_line(path, locator),
        "type": "copyFile",
        "sourceRepoType": "bucket",
        "sourceRepoId": source_bucket,
    }


def delete_line(path: str) -> Line:
    """The operation that removes a path."""
    return {"type": "deleteFile", "path": path}


def _file(item: dict[str, Any]) -> HubFile:
    created = item.get("uploadedAt")
    moment = datetime.fromisoformat(created) if created else None
    microseconds = int(moment.timestamp() * 1e6) if moment else 0
    return HubFile(item["path"], XetLocator(item["xetHash"], int(item["size"])), microseconds)


@contextmanager
def hub_errors(where: str, name: str = "") -> Iterator[None]:
    """Turn the errors of huggingface_hub and hf_xet into ours.

    Args:
        where: The bucket or repository, for the message.
        name: The file that was asked for, if one was.
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
            f"{where} of the Hub was not asked, because huggingface_hub is in offline mode: unset "
            "HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to use it",
        )
    if (local := _local_fault(error, text)) is not None:
        return StoreError(
            local,
            f"the client of the Hub cannot write its own files on this machine: {text}. Set "
            "HF_HOME or TMPDIR to a folder with room that you may write to",
        )
    if status in (401, 403) or isinstance(error, PermissionError) or is_refused(error):
        return StoreError(
            ErrorCode.NO_PERMISSION,
            f"{where} of the Hub does not permit it: log in with `hf auth login`, or set "
            f"HF_TOKEN to a token that may read it, and for some commands write to it ({text})",
        )
    if isinstance(error, RepositoryNotFoundError | BucketNotFoundError):
        return NotFoundError(
            ErrorCode.STORE_NOT_FOUND,
            f"the Hub has no {where}, or your token may not see it: `casweights init` makes one, "
            "`hf auth whoami` says who you are",
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
    """Whether the storage did not accept a grant. hf_xet may say so in the text alone."""
    is_told = isinstance(error, ConnectionError) and any(code in str(error) for code in _REFUSED)
    return is_told or isinstance(error, xet().XetAuthenticationError)


def _local_fault(error: Exception, text: str) -> ErrorCode | None:
    """What this machine's own disk has refused, if that is what is wrong: it will not pass.

    hf_xet tells the code in the text alone.
    """
    if not isinstance(error, OSError | RuntimeError):
        return None
    told = _OS_ERROR.search(text)
    number = int(told[1]) if told else getattr(error, "errno", None)
    return permanent_code(number)


def unreachable(where: str, why: str) -> StoreError:
    """The error for what may go well when tried again."""
    return StoreError(ErrorCode.UNREACHABLE, f"{where} of the Hub cannot be reached: {why}")


def _http_library() -> Any:
    """The flavour of httpx that this huggingface_hub is built on."""
    from huggingface_hub import get_session

    return import_module(type(get_session()).__module__.partition(".")[0])
