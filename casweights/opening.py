"""Opening a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.config import RemoteOptions, StoreConfig
from casweights.database import Database, create_store
from casweights.errors import ErrorCode, InvalidInputError
from casweights.events import Reporter
from casweights.repository import Repository
from casweights.stores.base import ObjectStore
from casweights.stores.url import open_object_store, with_readahead
from casweights.system.threads import default_workers

if TYPE_CHECKING:
    import os
    from types import TracebackType

    StoreLike = Repository | ObjectStore | str | os.PathLike[str]  # a store, or how to open it


def open_repository(
    store: str | os.PathLike[str] | ObjectStore,
    *,
    create: bool = False,
    config: StoreConfig | None = None,
    workers: int | None = None,
    cache_size: int = 0,
    remote: RemoteOptions | None = None,
    notes: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
) -> Repository:
    """Open a store.

    Args:
        store: A directory's path, ``hf://buckets/NAMESPACE/NAME`` and maybe a folder in that
            bucket, ``memory://``, or an object store.
        create: Make the store if there is none.
        config: Digest and chunk size of a store that is made now.
        workers: Threads for hashing and encoding; by default one for each processor.
        cache_size: Bytes of chunks to keep in memory. If a model fits, who commits or loads one
            version of it after the other rebuilds nothing to find the differences.
        remote: Patience with a network, and the sizes of this machine's caches for it.
        notes: A folder of this machine, for what is found damaged in a store that is read-only.
        reporter: Receives progress and results.

    Raises:
        NotFoundError: There is no store, and `create` is false.
        IntegrityError: The store's ``casweights.json`` is damaged.
        UnsupportedError: A newer casweights made the store.
        StoreError: The storage failed.
    """
    if workers is not None and workers < 1:
        raise InvalidInputError(ErrorCode.BAD_ARGUMENT, f"workers={workers}: it takes at least 1")
    if cache_size < 0:
        raise InvalidInputError(ErrorCode.BAD_ARGUMENT, f"cache_size={cache_size}: it takes bytes")
    options = remote or RemoteOptions()
    objects = (
        with_readahead(store, options)
        if isinstance(store, ObjectStore)
        else open_object_store(store, options)
    )
    if create:
        create_store(objects, config or StoreConfig())
    database = Database(
        objects,
        workers=workers or default_workers(),
        cache_size=cache_size,
        reporter=reporter or Reporter(),
        notes=None if notes is None else open_object_store(notes),
    )
    return Repository(database)


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """A store that is open, and whose it is. A context manager that enters the repository.

    Attributes:
        repository: The store.
        owned: Whether it was opened here, so that `close` closes it.
    """

    repository: Repository
    owned: bool

    def close(self) -> None:
        """Close the store, unless it was passed open."""
        if self.owned:
            self.repository.close()

    def __enter__(self) -> Repository:
        return self.repository

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def opened(store: StoreLike, *, remote: RemoteOptions | None = None) -> OpenedStore:
    """The store itself if it is open already; otherwise it is opened.

    Args:
        store: A store, or how to open it, see `open_repository`.
        remote: Options of a store that is opened here.

    Raises:
        NotFoundError: There is no store.
        StoreError: The storage failed.
    """
    if isinstance(store, Repository):
        return OpenedStore(store, owned=False)
    return OpenedStore(open_repository(store, remote=remote), owned=True)
