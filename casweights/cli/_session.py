"""The state that all verbs share: the store and the output."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from casweights.cli._output import Output
from casweights.config import RemoteOptions
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError
from casweights.format.names import CONFIG

if TYPE_CHECKING:
    from casweights.config import StoreConfig
    from casweights.events import Reporter
    from casweights.repository import Repository

STORE_VARIABLE = "CASWEIGHTS_STORE"
CACHE_VARIABLE = "CASWEIGHTS_CACHE"
DEFAULT_FOLDER = ".casweights"


@dataclass
class Session:
    """One run of the command line.

    Attributes:
        out: The output.
        store: The value of ``--store``; None without the option.
    """

    out: Output = field(default_factory=Output)
    store: str | None = None

    @property
    def named_location(self) -> str | None:
        """The store that ``--store`` or else the environment names; None if neither does."""
        # An empty variable counts as not set, as in `CASWEIGHTS_STORE= casweights log`.
        return self.store or os.environ.get(STORE_VARIABLE) or None

    @property
    def location(self) -> str:
        """The named store, or else the nearest one.

        Raises:
            NotFoundError: No store is named, and neither this folder nor one above has one.
        """
        if self.named_location is not None:
            return self.named_location
        nearest = nearest_store(Path.cwd())
        if nearest is None:
            raise NotFoundError(
                ErrorCode.STORE_NOT_FOUND,
                "no store is in this folder or above: make one with `casweights init`, or name one "
                f"with --store or {STORE_VARIABLE}",
            )
        return str(nearest)

    def open(self, reporter: Reporter | None = None, *, cache_size: int = 0) -> Repository:
        """Open the store that `location` names."""
        return open_store(self.location, cache_size=cache_size, reporter=reporter)


def open_store(
    location: str,
    *,
    create: bool = False,
    config: StoreConfig | None = None,
    cache_size: int = 0,
    reporter: Reporter | None = None,
) -> Repository:
    """Open a store, with the size of the disk cache that the environment sets.

    Raises:
        InvalidInputError: The environment does not set a number of bytes.
        NotFoundError: There is no store, and `create` is false. A note names a store nearby.
    """
    from casweights.opening import open_repository

    remote = remote_options()
    try:
        return open_repository(
            location,
            create=create,
            config=config,
            cache_size=cache_size,
            remote=remote,
            notes=_notes_folder(),
            reporter=reporter,
        )
    except NotFoundError as error:
        if error.code is ErrorCode.STORE_NOT_FOUND and is_local(location):
            _note_nearby_store(error, Path(location.removeprefix("file://")))
        raise


def remote_options() -> RemoteOptions:
    """Return the options for stores in buckets, with the size of the disk cache that is set.

    Raises:
        InvalidInputError: The environment does not set a number of bytes.
    """
    wanted = os.environ.get(CACHE_VARIABLE) or str(RemoteOptions().disk_cache)
    if not re.fullmatch(r"[0-9]{1,18}", wanted):  # numbers of 18 digits fit in 64 bits
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"{CACHE_VARIABLE} must be a number of bytes, or 0 for no cache, got {wanted!r}",
        )
    return RemoteOptions(disk_cache=int(wanted))


def is_local(location: str) -> bool:
    """Whether a store is in the file system of this machine."""
    return "://" not in location.removeprefix("file://")


def _note_nearby_store(error: NotFoundError, folder: Path) -> None:
    """Add a note if a folder that is no store contains one or is part of one."""
    if _is_store(folder / DEFAULT_FOLDER):
        error.add_note(f"there is a store in it: {folder / DEFAULT_FOLDER}")
        return
    for parent in folder.absolute().parents:
        if _is_store(parent):
            error.add_note(f"it is inside the store {parent}")
            return


def _notes_folder() -> Path | None:
    """Return this user's folder for notes on read-only stores; None without a home."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    # XDG says to ignore relative paths; without a home, expanduser returns "~" as it is.
    return Path(caches, "casweights", "notes") if os.path.isabs(caches) else None


def nearest_store(start: Path) -> Path | None:
    """Find the first store going up from `start`: a folder, or ``.casweights`` in it."""
    for folder in (start, *start.parents):
        for candidate in (folder, folder / DEFAULT_FOLDER):
            if _is_store(candidate):
                return candidate
    return None


def _is_store(folder: Path) -> bool:
    return os.path.isfile(folder / CONFIG)  # unlike Path.is_file, false if access is denied
