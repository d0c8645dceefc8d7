"""An open store: versions, refs and chunks, out of its objects and into them.

`Database` puts the parts together for the verbs. Values and their bytes are in `format`.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from casweights.database.cache import ChunkCache
from casweights.database.findings import Findings
from casweights.database.index import ChunkIndex
from casweights.database.reader import ChunkReader
from casweights.database.refs import Refs
from casweights.database.snapshots import SnapshotStore
from casweights.errors import ErrorCode, NotFoundError, UnsupportedError
from casweights.format import names
from casweights.format.hashing import chunk_hasher
from casweights.format.store_file import (
    MAX_STORE_FILE,
    decode_store_file,
    encode_store_file,
)
from casweights.results import StoreInfo
from casweights.stores.optional import SupportsRefStore, SupportsSharing
from casweights.system.handles import Handle
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from casweights.config import StoreConfig
    from casweights.events import Reporter
    from casweights.stores.base import ObjectStore


class Database(Handle):
    """An open store.

    Attributes:
        store: The objects.
        config: Digest and chunk size.
        store_id: Hexadecimal digits that tell this store from others.
        hasher: From a chunk's bytes to its ID.
        workers: Threads for the heavy work.
        findings: What was found damaged.
        index: Where chunks lie.
        reader: Chunks by ID.
        cache: Chunks that stay in memory.
        snapshots: Snapshots by ID.
        refs: Branches and tags.
        reporter: Who hears of progress.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        workers: int,
        cache_size: int,
        reporter: Reporter,
        notes: ObjectStore | None = None,
    ) -> None:
        try:
            store.require(names.CONFIG)
            store_file = store.read(names.CONFIG, MAX_STORE_FILE)
        except NotFoundError as error:
            if error.code is ErrorCode.STORE_NOT_FOUND:  # not even the place is there
                raise
            raise NotFoundError(
                ErrorCode.STORE_NOT_FOUND,
                f"there is no casweights store at {store.url}: make one with `casweights init` or "
                "`casweights.open(url, create=True)`",
            ) from None
        self.store = store
        self.config, self.store_id = decode_store_file(store_file)
        self.hasher = chunk_hasher(self.config.digest)
        self.workers = Workers(workers)
        self.findings = Findings(store, notes, self.store_id)
        self._heeded = False
        self.index = ChunkIndex(store, self.findings)
        self.reader = ChunkReader(store, self.index, self.hasher)
        self.cache = ChunkCache(cache_size, self.config.chunk_size)
        self.snapshots = SnapshotStore(store, self.index, self.config)
        refs = self.config.refs
        self.refs = Refs(store if refs is None else _ref_store(store, refs, self.store_id))
        self.reporter = reporter

    def _how_to_reopen(self) -> str:
        return f"open the store with casweights.open({self.store.url!r})"

    def info(self) -> StoreInfo:
        """What the store is."""
        holds = self.refs.store.probe()
        return StoreInfo(
            url=self.store.url,
            store_id=self.store_id,
            config=self.config,
            refs=self.refs.store.url,
            exclusive=holds.exclusive_create,
            durable=self.store.probe().durable and holds.durable,
        )

    def heed_findings(self) -> None:
        """Stop relying on what was found damaged. Writers call this before they deduplicate.

        Where reads are not cheap, findings are listed once, so that no later step waits for them.
        """
        if not self._heeded or self.store.capabilities.cheap_reads:
            self.index.heed(self.findings.load())
            self._heeded = True

    def close(self) -> None:
        """End the threads."""
        self.workers.close()


def create_store(store: ObjectStore, config: StoreConfig) -> bool:
    """Make a store, unless there is one already.

    Returns:
        Whether it was made now.
    """
    if config.shared and _store_file(store) is None:
        _share(store)
    else:
        store.create()
    if config.refs is None:
        return store.put(names.CONFIG, [encode_store_file(config, secrets.token_hex(16))])
    known = _store_file(store)
    if known is not None and known[0].refs not in (None, config.refs):
        return False  # whoever asked for this repository finds out that it has another one
    store_id = secrets.token_hex(16) if known is None else known[1]
    if known is None or known[0].refs is not None:  # the caller names it: it is earned
        _ref_store(store, config.refs, store_id).create()
    return known is None and store.put(names.CONFIG, [encode_store_file(config, store_id)])


def _share(store: ObjectStore) -> None:
    sharing = store.ability(SupportsSharing)
    if sharing is None:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{store.url} cannot be shared by a group of this machine's users: only stores in "
            "directories can",
        )
    sharing.share()


def _ref_store(store: ObjectStore, where: str, store_id: str) -> ObjectStore:
    """The store that keeps the refs, which is not the store itself."""
    keeper = store.ability(SupportsRefStore)
    if keeper is None:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED, f"{store.url} cannot keep its refs elsewhere, in {where}"
        )
    return keeper.ref_store(where, store_id)


def _store_file(store: ObjectStore) -> tuple[StoreConfig, str] | None:
    """What the store's own file says; None if there is none."""
    try:
        return decode_store_file(store.read(names.CONFIG, MAX_STORE_FILE))
    except NotFoundError:
        return None
