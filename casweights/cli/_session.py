"""What all verbs share: which store, and where the output goes."""

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
        out: Where the output goes.
        store: The store that the command line names, if any.
    """

    out: Output = field(default_factory=Output)
    store: str | None = None

    @property
    def named_location(self) -> str | None:
        """Where the store is, as the command line says or the environment."""
        return self.store or os.environ.get(STORE_VARIABLE) or None

    @property
    def location(self) -> str:
        """Where the store is: as named, or the nearest one.

        Raises:
            NotFoundError: Nothing says where.
        """
        if self.named_location is not None:
            return self.named_location
        nearest = nearest_store(Path.cwd())
        if nearest is None:
            raise NotFoundError(
                ErrorCode.STORE_NOT_FOUND,
                "there is no store in this folder or above: make one with `casweights init`, or "
                f"say where it is with --store or {STORE_VARIABLE}",
            )
        return str(nearest)

    def open(self, reporter: Reporter | None = None, *, cache_size: int = 0) -> Repository:
        """Open the store."""
        return open_store(self.location, cache_size=cache_size, reporter=reporter)


def open_store(
    location: str,
    *,
    create: bool = False,
    config: StoreConfig | None = None,
    cache_size: int = 0,
    reporter: Reporter | None = None,
) -> Repository:
    """Open a store, with this machine's cache as the environment wants it.

    Raises:
        InvalidInputError: The environment wants no size.
    """
    from casweights.opening import open_repository

    wanted = os.environ.get(CACHE_VARIABLE) or str(RemoteOptions().disk_cache)
    if not re.fullmatch(r"[0-9]{1,18}", wanted):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"{CACHE_VARIABLE} is {wanted!r}: it takes bytes, or 0"
        )
    return open_repository(
        location,
        create=create,
        config=config,
        cache_size=cache_size,
        remote=RemoteOptions(disk_cache=int(wanted)),
        notes=_notes_folder(),
        reporter=reporter,
    )


def _notes_folder() -> Path | None:
    """Where this user keeps notes on stores that are read-only; None without a home."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "casweights", "notes") if os.path.isabs(caches) else None


def nearest_store(start: Path) -> Path | None:
    """The store that a folder or the nearest one above it is or has."""
    for folder in (start, *start.parents):
        for candidate in (folder, folder / DEFAULT_FOLDER):
            if os.path.isfile(candidate / CONFIG):  # unlike Path.is_file, false if access is denied
                return candidate
    return None
