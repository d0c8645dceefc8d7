"""Refs in a git repository of the Hub, whose commits are compare-and-swap."""

from __future__ import annotations

import base64
import json
import random
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from casweights.errors import ErrorCode, InvalidInputError, NotFoundError, StoreError
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

    from casweights.stores.base import Buffer

_ATTEMPTS = 10
_FIRST_DELAY, _MAX_DELAY = 0.2, 5.0  # seconds; the head that is read may lag behind
_MAX_FILE = 16 << 20
_KINDS = ("models", "datasets")


class GitRefStore(ObjectStore):
    """Small objects as files of a repository. Each change is a commit on top of the one it saw.

    Args:
        where: The repository, as ``"datasets/namespace/name"``.
        endpoint: The Hub; by default huggingface_hub's own (``HF_ENDPOINT``).
        token: A token; by default the one that huggingface_hub finds.
        timeout: Seconds without an answer after which a request is given up.
    """

    capabilities = Capabilities(exclusive_create=True, remote=True)

    def __init__(
        self,
        where: str,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        timeout: float = 20.0,
    ) -> None:
        self._kind, _, self._repo = where.partition("/")
        if self._kind not in _KINDS or self._repo.count("/") != 1:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"{where!r} is no repository for refs: give datasets/NAMESPACE/NAME",
            )
        self._hub = HubApi(self._repo, endpoint, token, timeout)
        self._hub.where = f"repository {where}"
        self._where = where
        self._url = f"{self._hub.endpoint}/api/{where}"
        self._unsure: set[tuple[str, bytes]] = set()  # commits whose answer may have been lost

    @property
    def url(self) -> str:
        """``hf://datasets/namespace/name``."""
        return f"hf://{self._where}"

    def create(self) -> None:
        """Make the repository, a private one, unless it is there."""
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

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`. Exactly one of many writers makes the commit."""
        data, path = b"".join(parts), check_name(name)
        content = base64.b64encode(data).decode()
        line = {
            "key": "file",
            "value": {"path": path, "content": content, "encoding": "base64"},
        }

        def add(head: str) -> bool | None:
            if self._sizes([path], head):
                return (name, data) in self._unsure and self.read(name, _MAX_FILE) == data
            self._unsure.add((name, data))
            return self._commit([line], f"Add {name}", head)

        created = self._on_top(add)
        self._unsure.discard((name, data))
        return created

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        """See `ObjectStore.delete_all`: one commit."""
        paths = [check_name(name) for name in names]

        def remove(head: str) -> bool | None:
            there = self._sizes(paths, head)
            lines = [{"key": "deletedFile", "value": {"path": path}} for path in there]
            return self._commit(lines, f"Delete {len(lines)} refs", head) if lines else False

        if paths:
            self._on_top(remove)

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        sizes = self._sizes([check_name(name)], "main")
        if name not in sizes:
            raise missing(name)
        return sizes[name]

    def read(self, name: str, limit: int) -> bytes:
        """See `ObjectStore.read`."""
        prefix = "" if self._kind == "models" else f"{self._kind}/"
        url = f"{self._hub.endpoint}/{prefix}{self._repo}/resolve/main/{quote(check_name(name))}"
        return self._hub.read_url(url, name, limit)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        data = memoryview(self.read(name, _MAX_FILE))[start : start + len(out)]
        if len(data) != len(out):
            raise truncated(name)
        out[:] = data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        folder = prefix.rpartition("/")[0]
        url = f"{self._url}/tree/main" + (f"/{quote(check_name(folder))}" if folder else "")
        try:
            files = list(self._hub.files_below(url, recursive="true"))
        except NotFoundError as error:
            if error.code is ErrorCode.STORE_NOT_FOUND:
                raise
            files = []  # there is no such folder
        infos = [
            ObjectInfo(file["path"], int(file["size"]))
            for file in files
            if file["path"].startswith(prefix)
            and not any(part.startswith(".") for part in file["path"].split("/"))
        ]
        return iter(sorted(infos, key=lambda info: info.name))

    def _sizes(self, paths: Sequence[str], revision: str) -> dict[str, int]:
        """Sizes of those of these files that are there."""
        url = f"{self._url}/paths-info/{quote(revision, safe='')}"
        found = self._hub.request("POST", url, data={"paths": paths, "expand": False}).json()
        return {file["path"]: int(file["size"]) for file in found if file["type"] == "file"}

    def _head(self) -> str:
        return str(self._hub.request("GET", self._url).json()["sha"])

    def _commit(self, changes: Sequence[dict[str, Any]], message: str, head: str) -> bool | None:
        """Commit on top of `head`; None if it has moved."""
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
        """Make a change on top of the head, until nobody comes between."""
        delay = _FIRST_DELAY
        for _ in range(_ATTEMPTS):
            done = change(self._head())
            if done is not None:
                return done
            time.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311  no secret
            delay = min(2 * delay, _MAX_DELAY)
        raise StoreError(
            ErrorCode.UNREACHABLE,
            f"{self.url}: other writers were faster {_ATTEMPTS} times, try again later",
        )
