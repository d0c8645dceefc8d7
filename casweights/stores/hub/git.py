"""Refs in a git repository of the Hub, whose commits are compare-and-swap."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from casweights.errors import ErrorCode, InvalidInputError, StoreError
from casweights.stores.base import (
    Capabilities,
    ObjectInfo,
    ObjectStore,
    check_name,
    missing,
    truncated,
)
from casweights.stores.hub.api import HubApi, hub_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.stores.base import Buffer

_ATTEMPTS = 10
_FIRST_DELAY, _MAX_DELAY = 0.2, 5.0  # seconds; the head that is read may lag behind
_MAX_FILE = 16 << 20
_KINDS = {"models": "model", "datasets": "dataset"}


class GitRefStore(ObjectStore):
    """Small objects as files of a repository. Each change is a commit on top of the one it saw.

    Args:
        where: The repository, as ``"datasets/namespace/name"``.
        endpoint: The Hub; by default huggingface_hub's own (``HF_ENDPOINT``).
        token: A token; by default the one that huggingface_hub finds.
    """

    capabilities = Capabilities(exclusive_create=True, remote=True)

    def __init__(
        self, where: str, *, endpoint: str | None = None, token: str | None = None
    ) -> None:
        from huggingface_hub import HfApi

        kind, _, self._repo = where.partition("/")
        if kind not in _KINDS or self._repo.count("/") != 1:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"{where!r} is no repository for refs: give datasets/NAMESPACE/NAME",
            )
        self._where = where
        self._unsure: set[tuple[str, bytes]] = set()  # commits whose answer may have been lost
        self._kind = _KINDS[kind]
        self._hub = HubApi(self._repo, endpoint, token)
        self._hub.where = f"repository {where}"
        self._api = HfApi(endpoint=self._hub.endpoint, token=token, library_name="casweights")

    @property
    def url(self) -> str:
        """``hf://datasets/namespace/name``."""
        return f"hf://{self._where}"

    def create(self) -> None:
        """Make the repository, a private one, unless it is there."""
        with hub_errors(self._hub.where):
            self._api.create_repo(self._repo, repo_type=self._kind, private=True, exist_ok=True)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`. Exactly one of many writers makes the commit."""
        from huggingface_hub import CommitOperationAdd

        data, path = b"".join(parts), check_name(name)

        def add(head: str) -> bool | None:
            if self._infos([path], head):
                return (name, data) in self._unsure and self.read(name, _MAX_FILE) == data
            self._unsure.add((name, data))
            return self._commit([CommitOperationAdd(path, data)], f"Add {name}", head)

        created = self._on_top(add)
        self._unsure.discard((name, data))
        return created

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        """See `ObjectStore.delete_all`: one commit."""
        from huggingface_hub import CommitOperationDelete

        paths = [check_name(name) for name in names]

        def remove(head: str) -> bool | None:
            there = [info.path for info in self._infos(paths, head)]
            if not there:
                return False
            operations = [CommitOperationDelete(path) for path in there]
            return self._commit(operations, f"Delete {len(there)} refs", head)

        if paths:
            self._on_top(remove)

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        infos = self._infos([check_name(name)], "main")
        if not infos:
            raise missing(name)
        return int(infos[0].size)

    def read(self, name: str, limit: int) -> bytes:
        """See `ObjectStore.read`."""
        prefix = "" if self._kind == "model" else f"{self._kind}s/"
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
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import EntryNotFoundError

        folder = prefix.rpartition("/")[0]
        if folder:
            check_name(folder)
        with hub_errors(self._hub.where):
            try:
                tree = self._api.list_repo_tree(
                    self._repo, folder or None, recursive=True, repo_type=self._kind
                )
                infos = [
                    ObjectInfo(item.path, item.size)
                    for item in tree
                    if isinstance(item, RepoFile)
                    and item.path.startswith(prefix)
                    and not any(part.startswith(".") for part in item.path.split("/"))
                ]
            except EntryNotFoundError:
                return iter(())
        return iter(sorted(infos, key=lambda info: info.name))

    def _infos(self, paths: Sequence[str], revision: str) -> Sequence[Any]:
        with hub_errors(self._hub.where):
            found = self._api.get_paths_info(
                self._repo, list(paths), revision=revision, repo_type=self._kind
            )
        return [item for item in found if hasattr(item, "size")]

    def _head(self) -> str:
        with hub_errors(self._hub.where):
            return str(self._api.repo_info(self._repo, repo_type=self._kind).sha)

    def _commit(self, operations: Sequence[Any], message: str, head: str) -> bool | None:
        """Commit on top of `head`; None if it has moved."""
        from huggingface_hub.errors import HfHubHTTPError

        with hub_errors(self._hub.where):
            try:
                self._api.create_commit(
                    self._repo,
                    operations,
                    commit_message=message,
                    repo_type=self._kind,
                    parent_commit=head,
                )
            except HfHubHTTPError as error:
                if error.response.status_code == 412:
                    return None
                raise
        return True

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
