"""Opens the driver of a store's URL and wraps it. No other module wraps stores."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.config import RemoteOptions
from casweights.errors import ErrorCode, InvalidInputError, UnsupportedError
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.optional import SupportsReadahead
from casweights.stores.readahead import ReadaheadStore
from casweights.system.files import to_path

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore

_BUCKETS = "hf://buckets/"
_STORES = (
    f"the path of a directory, {_BUCKETS}NAMESPACE/NAME[/FOLDER] for a bucket of the Hub, or "
    "memory:// for a store in memory"
)


def open_object_store(
    url: str | os.PathLike[str], remote: RemoteOptions | None = None
) -> ObjectStore:
    """Open the store at a URL, with the wrappers that it needs.

    From the outside in, the layers are reading ahead, the disk cache, retries, and the driver.

    Args:
        url: Path of a directory, ``hf://buckets/NAMESPACE/NAME[/FOLDER]`` for a bucket of the Hub,
            or ``memory://`` for a new store in memory.
        remote: Options for stores behind a network.

    Raises:
        InvalidInputError: The URL is not that of a store.
        UnsupportedError: The scheme of the URL is not supported.
    """
    to_path(url)  # URLs must not have characters that paths cannot have, either
    text = os.fspath(url)
    if text == "memory://":
        return MemoryStore()
    if text.startswith(_BUCKETS):
        options = remote or RemoteOptions()
        return with_readahead(_open_bucket(text, options), options)
    scheme, separator, _ = text.partition("://")
    if separator and scheme != "file":
        what = (
            f"{text} is not in a bucket"
            if scheme == "hf"
            else f"{scheme}:// stores are not supported"
        )
        raise UnsupportedError(ErrorCode.UNSUPPORTED, f"{what}: give {_STORES}")
    return LocalStore(to_path(text.removeprefix("file://")).absolute())


def open_model_files(url: str, remote: RemoteOptions | None = None) -> ObjectStore | None:
    """Return the files of the model repository at a URL; None for everything else.

    Args:
        url: ``hf://NAMESPACE/NAME``, perhaps with ``@REVISION``; or the URL or path of a store or
            directory.
        remote: Options for stores behind a network.

    Raises:
        InvalidInputError: The URL begins with ``hf://``, and names no repository or bucket.
    """
    if not url.startswith("hf://") or url.startswith(_BUCKETS):
        return None
    from casweights.stores.hub.model_files import ModelFiles, parse_model_url
    from casweights.stores.retry import RetryStore

    repository, revision = parse_model_url(url)
    return RetryStore(ModelFiles(repository, revision), (remote or RemoteOptions()).patience)


def with_readahead(store: ObjectStore, options: RemoteOptions) -> ObjectStore:
    """Add reading ahead to a store, unless its reads are cheap or it already reads ahead."""
    if store.capabilities.cheap_reads or store.ability(SupportsReadahead) is not None:
        return store
    return ReadaheadStore(store, options.read_ahead)


def _open_bucket(url: str, options: RemoteOptions) -> ObjectStore:
    """Open the store in a bucket, with retries and a disk cache around it."""
    from casweights.stores.cached import CachedStore
    from casweights.stores.hub.store import HubStore, assets_folder
    from casweights.stores.retry import RetryStore

    namespace, _, rest = url.removeprefix(_BUCKETS).strip("/").partition("/")
    name, _, prefix = rest.partition("/")
    if not namespace or not name:
        raise InvalidInputError(ErrorCode.BAD_ARGUMENT, f"{url} names no bucket: give {_STORES}")
    bucket = HubStore(
        f"{namespace}/{name}", prefix, stall=options.stall, clock_skew=options.clock_skew
    )
    store: ObjectStore = RetryStore(bucket, options.patience)
    if options.disk_cache:
        key = f"{bucket.api.endpoint} {bucket.url}"
        with suppress(OSError, ValueError):  # the store works without a cache, too
            store = CachedStore(store, assets_folder(), options.disk_cache, key)
    return store
