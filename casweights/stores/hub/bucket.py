"""The folder of a bucket that contains a store: maps names of objects to files, and back."""

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

_ATTEMPTS = 3  # requests for one operation before the Hub's refusal of it is final


class BucketFolder:
    """Files below a folder of a bucket.

    Args:
        api: Requests about the bucket.
        prefix: Path of the folder; empty for the whole bucket.

    Attributes:
        api: Requests about the bucket.
        known: Known locators of the files' bytes, by name of the object.
    """

    def __init__(self, api: HubApi, prefix: str) -> None:
        self.api = api
        self.known = KnownLocators()
        self._root = f"{check_name(prefix)}/" if prefix else ""
        # Objects that must not change, with their first locator; None until the first look-up.
        self._required: dict[str, XetLocator | None] = {}

    @property
    def url(self) -> str:
        """URL of the folder, ``hf://buckets/namespace/name/prefix``."""
        return f"hf://buckets/{self.api.bucket}/{self._root}".rstrip("/")

    def path(self, name: str) -> str:
        """Return the path of an object's file in the bucket.

        Raises:
            InvalidInputError: The name is not valid.
        """
        return self._root + check_name(name)

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Return the objects whose names begin with `prefix`, ordered by name."""
        start = self._root + prefix
        files = [file for file in self.api.tree(start) if file.path.startswith(start)]
        self._confirm(files)
        infos = [
            ObjectInfo(file.path.removeprefix(self._root), file.locator.size, file.created)
            for file in files
        ]
        return sorted(infos, key=lambda info: info.name)

    def locate(self, name: str) -> XetLocator:
        """Return the locator of an object. Sends a request only if it is not known.

        Raises:
            NotFoundError: The object does not exist.
        """
        known = self.known.get(name)
        if known is None:
            known = self.look_up([name]).get(name)
        if known is None:
            raise missing(name)
        return known

    def look_up(self, names: Sequence[str]) -> dict[str, XetLocator]:
        """Request the current locators of objects from the Hub; leaves out missing objects."""
        if not names:
            return {}
        files = self.api.files([self.path(name) for name in names])
        return self._confirm(files.values())

    def _confirm(self, files: Iterable[HubFile]) -> dict[str, XetLocator]:
        found = {file.path.removeprefix(self._root): file.locator for file in files}
        self.known.confirm(found)
        return found

    def require(self, name: str) -> None:
        """Make `look_up_to_write` require that this object exists and stays the same.

        Sends no request: the check is part of the look-ups before a write.
        """
        self._required.setdefault(name, None)

    @property
    def is_checked(self) -> bool:
        """Whether every required object was found at least once."""
        return all(self._required.values())

    def look_up_to_write(self, names: Sequence[str]) -> dict[str, XetLocator]:
        """Look up objects that a writer is about to create, and check the required objects.

        Raises:
            NotFoundError: A required object is missing, or has changed.
        """
        there = self.look_up([*names, *self._required])
        for name, before in self._required.items():
            if name not in there or before not in (None, there[name]):
                raise NotFoundError(
                    ErrorCode.STORE_NOT_FOUND,
                    f"the store at {self.url} has disappeared since it was opened: "
                    f"{name} {'is missing' if name not in there else 'belongs to another store'}. "
                    "Nothing more is written to it",
                )
            self._required[name] = there[name]
        return there

    def create(self, lines: dict[str, Line], names: Sequence[str]) -> None:
        """Give objects their paths, in order.

        If the Hub refuses one object three times, the objects after it are deleted again.

        Args:
            lines: Operation to send for each object, by name.
            names: All objects that this writer creates, in order: those of `lines`, and those that
                an earlier attempt has named.

        Raises:
            StoreError: The Hub refused an object.
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
                f"the Hub refused {len(pending)} of {len(paths)} objects of a batch, first "
                f"{first}: {refused[first]}. The objects after it were deleted again",
            )

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, in order. A refusal is ignored if the object does not exist.

        Raises:
            StoreError: The Hub refused to delete an object that exists.
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
    """Return whether the Hub was reached and refused a request."""
    return isinstance(error, StoreError) and error.code is ErrorCode.IO_FAILED
