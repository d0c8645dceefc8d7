"""Access to stores and versions for hosts: a store per process, a version in a folder."""

from __future__ import annotations

import os
from contextlib import contextmanager
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from casweights.errors import ErrorCode, NotFoundError
from casweights.opening import opened
from casweights.repository import Repository
from casweights.system.handles import belongs_here

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casweights.format.manifest import Snapshot

# Names of the files that Trainer, accelerate, FSDP and DeepSpeed write next to a model's files.
_TRAINING_STATE = (
    *("trainer_state.json", "training_args.bin", "scheduler.pt", "scaler.pt"),
    *("optimizer*.bin", "*optimizer.pt", "optimizer.pt_*", "rng_state*.pth", "random_states_*.pkl"),
    *("*.distcp", "*_optim_states.pt", "*_model_states.pt"),
)


class LazyRepository:
    """A store that each process opens on first use; only its URL is pickled.

    Args:
        store: An open store, or the path or URL of one.
    """

    def __init__(self, store: Repository | str | os.PathLike[str]) -> None:
        self._opened = store if isinstance(store, Repository) else None
        self._url = store.url if isinstance(store, Repository) else os.fspath(store)

    def open(self) -> Repository:
        """Open the store if this process has not opened it yet, and return it.

        Raises:
            NotFoundError: The store does not exist.
            StoreError: The storage failed.
        """
        if self._opened is None or not belongs_here(self._opened):
            self._opened = opened(self._url).repository
        return self._opened

    def __getstate__(self) -> Mapping[str, Any]:
        """Return the state without the open store, for pickling."""
        return {"_opened": None, "_url": self._url}


@contextmanager
def checked_out(
    repository: Repository,
    snapshot: Snapshot,
    directory: str | os.PathLike[str] | None = None,
    *,
    subfolder: str = "",
    skip: tuple[str, ...] = (),
) -> Iterator[Path]:
    """Check a version out into a directory, without the files of a training state.

    Args:
        repository: The store.
        snapshot: The version, or a version with only some of its files.
        directory: The directory in which each version has a folder of its own; by default a
            temporary directory, which is removed on exit.
        subfolder: The only folder of the version to check out; by default all of them.
        skip: Patterns of the names of files to leave out.

    Yields:
        The version's folder.

    Raises:
        NotFoundError: No file remains to check out.
    """
    inside = PurePosixPath(subfolder)
    paths = [
        file.path
        for file in snapshot.files
        if PurePosixPath(file.path).is_relative_to(inside)
        and not name_matches(file.path, _TRAINING_STATE + skip)
    ]
    if not paths:
        raise NotFoundError(
            ErrorCode.FILE_NOT_FOUND,
            f"version {snapshot.id} has no files to load from" + (subfolder and f" in {subfolder}"),
        )
    with TemporaryDirectory(prefix="casweights-") as temporary:
        folder = Path(temporary if directory is None else directory, str(snapshot.id))
        repository.checkout(snapshot, folder, include=[escape(path) for path in paths])
        yield folder


def name_matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether the last part of a path matches any of the patterns."""
    name = PurePosixPath(path).name
    return any(fnmatchcase(name, pattern) for pattern in patterns)
