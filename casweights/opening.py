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
    """Open a store of model versions, and make it first if `create` is true.

    Args:
        store: Path of a directory, ``hf://buckets/NAMESPACE/NAME[/FOLDER]`` for a bucket of the
            Hub, ``memory://``, or an object store.
        create: Make the store if it does not exist.
        config: Settings of a store that is made now; an existing store keeps its own.
        workers: Number of threads for hashing and encoding; by default one per processor.
        cache_size: Bytes of decoded chunks to keep in memory. If a whole model fits, commits and
            loads of successive versions do not rebuild the previous one from the store.
        remote: Options for stores behind a network.
        notes: Folder of this machine that records damage found in a read-only store; None to
            record none.
        reporter: Receives progress, results and warnings.

    Returns:
        The open store, a context manager that closes it.

    Raises:
        NotFoundError: The store does not exist, and `create` is false.
        InvalidInputError: `store`, `workers` or `cache_size` is not valid.
        IntegrityError: The store's ``casweights.json`` is damaged.
        UnsupportedError: A newer casweights made the store.
        StoreError: The storage failed.

    Example:
        >>> with casweights.open("./store", create=True) as store:
        ...     store.commit("./my-model", message="first")
    """
    if workers is not None and workers < 1:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"workers must be at least 1, got {workers}"
        )
    if cache_size < 0:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"cache_size must be at least 0 bytes, got {cache_size}"
        )
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
    """An open store with its owner: a context manager that closes the store if it owns it.

    Attributes:
        repository: The store.
        owned: Whether the store was opened here, so that `close` closes it.
    """

    repository: Repository
    owned: bool

    def close(self) -> None:
        """Close the store if it was opened here."""
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
    """Return an open store as it is, or open the store that a URL or path names.

    Args:
        store: An open store, or its URL, path or object store, as for `open_repository`.
        remote: Options for a store that is opened here.

    Raises:
        NotFoundError: The store does not exist.
        StoreError: The storage failed.
    """
    if isinstance(store, Repository):
        return OpenedStore(store, owned=False)
    return OpenedStore(open_repository(store, remote=remote), owned=True)
