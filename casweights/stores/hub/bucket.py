"""The folder of a bucket that a store lies in: from names of objects to files, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, NotFoundError, StoreError
from casweights.stores.base import ObjectInfo, check_name, missing
from casweights.stores.hub.api import delete_line
from casweights.stores.hub.locators import KnownLocators

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casweights.stores.hub.api import HubApi, HubFile, Line
    from casweights.stores.hub.locators import XetLocator

_ATTEMPTS = 3  # times that a line of a batch is sent before the Hub's refusal counts


class BucketFolder:
    """Files below a folder of a bucket.

    Args:
        api: Requests about the bucket.
        prefix: The folder; empty for the whole bucket.

    Attributes:
        api: As above.
        known: What is known of where their bytes lie.
    """

    def __init__(self, api: HubApi, prefix: str) -> None:
        self.api = api
        self.known = KnownLocators()
        self._root = f"{check_name(prefix)}/" if prefix else ""
        # Objects that must stay, as they were seen first; None until the Hub was asked once.
        self._required: dict[str, XetLocator | None] = {}

    @property
    def url(self) -> str:
        """``hf://buckets/namespace/name/prefix``."""
        return f"hf://buckets/{self.api.bucket}/{self._root}".rstrip("/")

    def path(self, name: str) -> str:
        """The file of an object.

        Raises:
            InvalidInputError: No object can have this name.
        """
        return self._root + check_name(name)

    def list(self, prefix: str) -> list[ObjectInfo]:
        """The objects whose names begin with `prefix`."""
        start = self._root + prefix
        files = [file for file in self.api.tree(start) if file.path.startswith(start)]
        self._confirm(files)
        infos = [
            ObjectInfo(file.path.removeprefix(self._root), file.locator.size, file.created)
            for file in files
        ]
        return sorted(infos, key=lambda info: info.name)

    def locate(self, name: str) -> XetLocator:
        """Where an object's bytes lie. The Hub is asked only if nothing is known.

        Raises:
            NotFoundError: There is no such object.
        """
        known = self.known.get(name)
        if known is None:
            known = self.look_up([name]).get(name)
        if known is None:
            raise missing(name)
        return known

    def look_up(self, names: Sequence[str]) -> dict[str, XetLocator]:
        """Locators of those of these objects that are there, as the Hub knows them now."""
        if not names:
            return {}
        files = self.api.files([self.path(name) for name in names])
        return self._confirm(files.values())

    def _confirm(self, files: Iterable[HubFile]) -> dict[str, XetLocator]:
        found = {file.path.removeprefix(self._root): file.locator for file in files}
        self.known.confirm(found)
        return found

    def require(self, name: str) -> None:
        """See `ObjectStore.require`. Checked wherever the Hub is asked before a write anyway."""
        self._required.setdefault(name, None)

    @property
    def is_checked(self) -> bool:
        """Whether all that is required was seen once."""
        return all(self._required.values())

    def look_up_to_write(self, names: Sequence[str]) -> dict[str, XetLocator]:
        """`look_up`, with a check of what is required.

        Raises:
            NotFoundError: What is required is not there, or is that of another store.
        """
        there = self.look_up([*names, *self._required])
        for name, before in self._required.items():
            if name not in there or before not in (None, there[name]):
                raise NotFoundError(
                    ErrorCode.STORE_NOT_FOUND,
                    f"the store at {self.url} has disappeared since it was opened: "
                    f"{name} is {'not there' if name not in there else 'that of another store'}. "
                    "Nothing more is written to it",
                )
            self._required[name] = there[name]
        return there

    def create(self, lines: dict[str, Line], names: Sequence[str]) -> None:
        """Name objects, in order.

        If the Hub refuses one again and again, those behind it are taken back.

        Args:
            lines: What to send for each object.
            names: All objects that this writer creates, in order: those of `lines`, and those that
                an earlier attempt has named.

        Raises:
            StoreError: The Hub refused one.
        """
        pending = {self.path(name): line for name, line in lines.items()}
        paths = [self.path(name) for name in names]
        for _ in range(_ATTEMPTS):
            refused = self.api.batch(list(pending.values())) if pending else {}
            pending = {path: line for path, line in pending.items() if path in refused}
        if pending:
            first = next(iter(pending))
            behind = paths[paths.index(first) :]
            self.api.batch([delete_line(path) for path in behind if path not in pending])
            raise StoreError(
                ErrorCode.IO_FAILED,
                f"the Hub refused {len(pending)} of {len(paths)} objects of a batch, the first "
                f"is {first}: {refused[first]}. What was to follow it was taken back",
            )

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, in order. A refusal is fine if the object is not there.

        Raises:
            StoreError: The Hub refused to delete one that is there.
        """
        pending = [self.path(name) for name in names]
        for _ in range(_ATTEMPTS):
            refused = self.api.batch([delete_line(path) for path in pending]) if pending else {}
            there = self.api.files(list(refused)) if refused else {}
            pending = [path for path in pending if path in there]
        for name in names:
            self.known.forget(name)
        if pending:
            raise StoreError(
                ErrorCode.IO_FAILED,
                f"the Hub refused to delete {pending[0]}: {refused[pending[0]]}",
            )


def is_refusal(error: BaseException) -> bool:
    """Whether the Hub was reached and does not do what it is asked for."""
    return isinstance(error, StoreError) and error.code is ErrorCode.IO_FAILED
