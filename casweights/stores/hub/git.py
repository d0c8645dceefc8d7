"""A store for refs in a git repository of the Hub, where a commit is a compare-and-swap."""

from __future__ import annotations

import base64
import json
import random
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from casweights.errors import (
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StoreError,
)
from casweights.stores.base import (
    Capabilities,
    ObjectInfo,
    ObjectStore,
    check_name,
    missing,
    truncated,
)
from casweights.stores.hub.api import HubApi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.system.buffers import Buffer

_ATTEMPTS = 10  # commits of one change, each on the then newest head
_FIRST_DELAY, _MAX_DELAY = 0.2, 5.0  # seconds; reads of the head may lag behind
_MAX_FILE = 16 << 20  # bytes; refs have a few hundred, but a hostile repository may have any number
_REPOSITORY = re.compile(
    r"(models|datasets)/([A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)"
)
_TIE = "store.json"
_MAX_TIE = 4096  # bytes; ours has a few hundred


class GitRefStore(ObjectStore):
    """Small objects as files of a repository. Each change is a commit on the head it was based on.

    The files are in a folder named after the store's ID. A file in it, the *tie*, names the store
    that these refs belong to. Any writer of the store can make ``casweights.json`` name this
    repository, but only users with write access to the repository can write the tie. So the tie
    is read and compared before any other file is read or written.

    Args:
        where: Name of the repository, as ``"datasets/namespace/name"``.
        store: URL of the store, as ``"hf://buckets/namespace/name/prefix"``.
        store_id: ID of the store.
        endpoint: URL of the Hub; by default huggingface_hub's own (``HF_ENDPOINT``).
        token: Access token; by default the one that huggingface_hub finds.
        timeout: Seconds without an answer after which a request fails.
    """

    capabilities = Capabilities(exclusive_create=True, listing_lags=True, cheap_reads=False)

    def __init__(
        self,
        where: str,
        store: str,
        store_id: str,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        timeout: float = 20.0,
    ) -> None:
        match = _REPOSITORY.fullmatch(where)
        if match is None or ".." in where:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"{where!r} is no repository for refs: give datasets/NAMESPACE/NAME or "
                "models/NAMESPACE/NAME",
            )
        self._kind, self._repo = match.groups()
        self._root = check_name(store_id) + "/"
        self._store = store
        self._tie = json.dumps({"store": store, "store_id": store_id}, indent=2).encode()
        self._is_tied = False
        self._hub = HubApi(self._repo, endpoint, token, timeout)
        self._hub.where = f"repository {where}"
        self._where = where
        self._url = f"{self._hub.endpoint}/api/{where}"
        self._unsure: set[tuple[str, bytes]] = set()  # commits whose answer may have been lost

    @property
    def url(self) -> str:
        """URL of the repository, ``hf://datasets/namespace/name``."""
        return f"hf://{self._where}"

    def create(self) -> None:
        """Create the repository as a private one, unless it exists, and write the tie."""
        namespace, _, name = self._repo.partition("/")
        self._hub.request(
            "POST",
            f"{self._hub.endpoint}/api/repos/create",
            json={
                "type": self._kind.removesuffix("s"),
                "organization": namespace,
                "name": name,
                "private": True,
            },
            accepted=(409,),
        )
        if self._read_tie() != self._tie:
            line = _file_line(self._root + _TIE, self._tie)
            self._on_top(lambda head: self._commit([line], f"Keep the refs of {self._store}", head))
        self._is_tied = True

    def _read_tie(self) -> bytes | None:
        """Return the content of the tie; None if the repository has none."""
        try:
            return self._read(_TIE, _MAX_TIE)
        except NotFoundError as error:
            if error.code is ErrorCode.STORE_NOT_FOUND:
                raise
            return None

    def _path(self, name: str) -> str:
        """Return the path of an object, after a check of the tie at the first call.

        Raises:
            IntegrityError: The repository has no tie to this store.
        """
        if not self._is_tied:
            if self._read_tie() != self._tie:
                raise IntegrityError(
                    ErrorCode.FOREIGN_REFS,
                    f"the casweights.json of {self._store} names {self._where} for its branches "
                    "and tags, but that repository does not name this store, so nothing was read "
                    "from it or written to it. If it is the right one, because the bucket was "
                    f"renamed, run `casweights init {self._store} --refs {self._where}`",
                )
            self._is_tied = True
        return self._root + name

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        data, path = b"".join(parts), self._path(check_name(name))
        line = _file_line(path, data)

        def add(head: str) -> bool | None:
            if self._sizes([path], head):
                return (name, data) in self._unsure and self.read(name, _MAX_FILE) == data
            self._unsure.add((name, data))
            return self._commit([line], f"Add {name}", head)

        created = self._on_top(add)
        self._unsure.discard((name, data))
        return created

    def delete(self, name: str) -> None:
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        paths = [self._path(check_name(name)) for name in names]

        def remove(head: str) -> bool | None:
            there = self._sizes(paths, head)
            lines = [{"key": "deletedFile", "value": {"path": path}} for path in there]
            return self._commit(lines, f"Delete {len(lines)} refs", head) if lines else False

        if paths:
            self._on_top(remove)

    def size(self, name: str) -> int:
        path = self._path(check_name(name))
        sizes = self._sizes([path], "main")
        if path not in sizes:
            raise missing(name)
        return sizes[path]

    def read(self, name: str, limit: int) -> bytes:
        self._path(check_name(name))
        return self._read(name, limit)

    def _read(self, name: str, limit: int) -> bytes:
        prefix = "" if self._kind == "models" else f"{self._kind}/"
        path = quote(self._root + name)
        url = f"{self._hub.endpoint}/{prefix}{self._repo}/resolve/main/{path}"
        return self._hub.read_url(url, name, limit)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        data = memoryview(self.read(name, _MAX_FILE))[start : start + len(out)]
        if len(data) != len(out):
            raise truncated(name)
        out[:] = data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        path = self._path(prefix)
        url = f"{self._url}/tree/main/{quote(check_name(path.rpartition('/')[0]))}"
        try:
            files = list(self._hub.files_below(url, recursive="true"))
        except NotFoundError as error:
            if error.code is ErrorCode.STORE_NOT_FOUND:
                raise
            files = []  # the folder does not exist
        infos = [
            ObjectInfo(file["path"].removeprefix(self._root), int(file["size"]))
            for file in files
            if file["path"].startswith(path)
            and file["path"] != self._root + _TIE
            and not any(part.startswith(".") for part in file["path"].split("/"))
        ]
        return iter(sorted(infos, key=lambda info: info.name))

    def _sizes(self, paths: Sequence[str], revision: str) -> dict[str, int]:
        """Return sizes in bytes of the existing ones among these files, by path."""
        url = f"{self._url}/paths-info/{quote(revision, safe='')}"
        found = self._hub.request("POST", url, data={"paths": paths, "expand": False}).json()
        return {file["path"]: int(file["size"]) for file in found if file["type"] == "file"}

    def _head(self) -> str:
        return str(self._hub.request("GET", self._url).json()["sha"])

    def _commit(self, changes: Sequence[dict[str, Any]], message: str, head: str) -> bool | None:
        """Commit on top of `head`, and return True; None if the head has moved."""
        header = {"summary": message, "description": "", "parentCommit": head}
        lines = [{"key": "header", "value": header}, *changes]
        response = self._hub.request(
            "POST",
            f"{self._url}/commit/main",
            content=b"".join(json.dumps(line).encode() + b"\n" for line in lines),
            headers={"Content-Type": "application/x-ndjson"},
            accepted=(412,),
        )
        return None if response.status_code == 412 else True

    def _on_top(self, change: Callable[[str], bool | None]) -> bool:
        """Repeat a change on the newest head until no other commit comes first.

        Args:
            change: Function that accepts a head and commits on top of it. It returns None if the
                head has moved, and otherwise the result.
        """
        delay = _FIRST_DELAY
        for _ in range(_ATTEMPTS):
            done = change(self._head())
            if done is not None:
                return done
            time.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311  no secret
            delay = min(2 * delay, _MAX_DELAY)
        raise StoreError(
            ErrorCode.UNREACHABLE,
            f"other writers changed {self.url} during each of {_ATTEMPTS} attempts: try again "
            "later",
        )


def _file_line(path: str, data: bytes) -> dict[str, Any]:
    """Return the line of a commit that adds or replaces a file."""
    content = base64.b64encode(data).decode()
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}
