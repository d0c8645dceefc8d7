"""From a store's URL to its driver and the wrappers around it. No other module wraps a store."""

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


def open_object_store(
    url: str | os.PathLike[str], remote: RemoteOptions | None = None
) -> ObjectStore:
    """The store that a URL names, with the wrappers that it needs.

    From the outside in, these are: reading ahead, the disk cache, patience, and the driver.

    Args:
        url: A directory's path, ``hf://buckets/NAMESPACE/NAME`` and maybe a folder in it, or
            ``memory://`` for a new one in memory.
        remote: How to deal with a store behind a network.

    Raises:
        InvalidInputError: It is no URL of a store.
        UnsupportedError: A scheme that is not supported.
    """
    to_path(url)  # no URL has what no path can have
    text = os.fspath(url)
    if text == "memory://":
        return MemoryStore()
    if text.startswith(_BUCKETS):
        options = remote or RemoteOptions()
        return with_readahead(_open_bucket(text, options), options)
    scheme, separator, _ = text.partition("://")
    if separator and scheme != "file":
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{scheme}:// stores are not supported{': ' if scheme == 'hf' else ', '}"
            f"give the path of a directory, or {_BUCKETS}NAMESPACE/NAME",
        )
    return LocalStore(to_path(text.removeprefix("file://")).absolute())


def with_readahead(store: ObjectStore, options: RemoteOptions) -> ObjectStore:
    """A store that can read ahead, if that gains anything there."""
    if store.capabilities.cheap_reads or store.ability(SupportsReadahead) is not None:
        return store
    return ReadaheadStore(store, options.read_ahead)


def _open_bucket(url: str, options: RemoteOptions) -> ObjectStore:
    from casweights.stores.cached import CachedStore
    from casweights.stores.hub.store import HubStore, assets_folder
    from casweights.stores.retry import RetryStore

    namespace, _, rest = url.removeprefix(_BUCKETS).strip("/").partition("/")
    name, _, prefix = rest.partition("/")
    if not namespace or not name:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"{url} names no bucket: give {_BUCKETS}NAMESPACE/NAME"
        )
    bucket = HubStore(
        f"{namespace}/{name}", prefix, stall=options.stall, clock_skew=options.clock_skew
    )
    store: ObjectStore = RetryStore(bucket, options.patience)
    if options.disk_cache:
        key = f"{bucket.api.endpoint} {bucket.url}"
        with suppress(OSError, ValueError):  # a place that cannot be made is no reason to stop
            store = CachedStore(store, assets_folder(), options.disk_cache, key)
    return store
