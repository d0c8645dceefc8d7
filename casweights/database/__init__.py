"""An open store: reads versions, refs and chunks from its objects, and writes them to objects.

`Database` holds the parts that the operations use. The byte formats are in `casweights.format`.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from casweights.database.cache import ChunkCache
from casweights.database.expired import ExpiredStore
from casweights.database.findings import Findings
from casweights.database.history import History
from casweights.database.index import ChunkIndex
from casweights.database.losses import Losses
from casweights.database.onlooking import OnlookingStore
from casweights.database.policies import Policies
from casweights.database.reader import ChunkReader
from casweights.database.refs import Refs
from casweights.database.signatures import SignatureStore
from casweights.database.snapshots import SnapshotStore
from casweights.database.version_names import VersionNames
from casweights.errors import ErrorCode, NotFoundError, UnsupportedError
from casweights.events import Reporter
from casweights.format import names
from casweights.format.hashing import chunk_hasher
from casweights.format.store_file import (
    MAX_STORE_FILE,
    decode_store_file,
    encode_store_file,
)
from casweights.results import StoreInfo
from casweights.stores.optional import SupportsDirect, SupportsRefStore, SupportsSharing
from casweights.system.handles import Handle
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.config import StoreConfig
    from casweights.database.merged import Merged
    from casweights.stores.base import ObjectStore


class Database(Handle):
    """An open store, with one attribute for each kind of thing in it.

    The order of calls in a commit: `heed_findings`, then look up chunks in `index` and write the
    missing ones with a `PackWriter`, then `snapshots.save`, and last `refs.advance`. Every object
    is durable before another one refers to it, so a process that dies at any point leaves a store
    in which every branch and tag can be read.

    Args:
        store: The objects, or the `store` of an open handle, which shares what it has learnt.
        workers: Number of threads for encoding and decoding.
        cache_size: Bytes of chunks to keep in memory; 0 keeps none.
        reporter: Receives progress, results and warnings.
        notes: A store on this machine for findings that `store` cannot be given; None for none.
        identity: Configuration and ID of the store, if it is open already; None to read them.
        noting: Whether to keep findings about frames that turn out to be damaged.

    Raises:
        NotFoundError: `store` contains no casweights store.

    Attributes:
        objects: The objects under their own names.
        store: The same; every version has the name ``snapshots/<ID>``, also a whole move.
        config: The digest, the chunk size, and where the refs are.
        store_id: Hexadecimal digits that distinguish this store from all others.
        hasher: Computes the ID of a chunk from its bytes.
        workers: Threads for encoding and decoding.
        findings: Frames and packs that were found damaged.
        losses: Records of what is lost of versions.
        index: The locations of chunks.
        reader: Reads chunks by ID.
        cache: Chunks that stay in memory.
        snapshots: Reads and writes snapshots by ID.
        refs: Branches and tags.
        expired: The records of expired versions.
        history: Walks through the history of a version.
        policies: The retention policy of the store.
        signatures: Samples of versions, by which relatives are found.
        reporter: Receives progress, results and warnings.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        workers: int,
        cache_size: int,
        reporter: Reporter,
        notes: ObjectStore | None = None,
        identity: tuple[StoreConfig, str] | None = None,
        noting: bool = True,
    ) -> None:
        self.config, self.store_id = identity or _identify(store)
        if isinstance(store, VersionNames):
            self.objects, self.store = store.inner, store
        else:
            self.objects, self.store = store, VersionNames(store, has_refs=self.config.refs is None)
        store = self.store
        self.hasher = chunk_hasher(self.config.digest)
        self.workers = Workers(workers)
        self.findings = Findings(store, notes, self.store_id)
        self._heeded = False
        self.losses = Losses(store)
        self.index = ChunkIndex(store, self.findings if noting else None)
        self.reader = ChunkReader(store, self.index, self.hasher, self.config.chunk_size)
        self.cache = ChunkCache(cache_size, self.config.chunk_size)
        self.expired = ExpiredStore(store)
        self.snapshots = SnapshotStore(store, self.index, self.reader, self.config, self.expired)
        refs = self.config.refs
        self.refs = Refs(store if refs is None else _ref_store(store, refs, self.store_id))
        self.history = History(self.snapshots, self.expired, self.refs)
        self.policies = Policies(store)
        self.signatures = SignatureStore(store)
        self.reporter = reporter

    def _how_to_reopen(self) -> str:
        return f"open the store with casweights.open({self.store.url!r})"

    def info(self) -> StoreInfo:
        """Return the store's URL, ID, configuration and guarantees."""
        holds = self.refs.store.probe()
        return StoreInfo(
            url=self.store.url,
            store_id=self.store_id,
            config=self.config,
            refs=self.refs.store.url,
            exclusive=holds.exclusive_create,
            durable=self.store.probe().durable and holds.durable,
        )

    def announce(self) -> None:
        """Let a collection without grace time know that this handle is about to write.

        Writers call this before they look at what they rely on, unless they look at a branch for an
        update, which does the same. Only a directory takes notice, with the folder that it needs
        for the writes: see `SupportsWriters`.
        """
        self.store.probe()

    def heed_findings(self) -> None:
        """Load the findings, so that damaged chunks count as missing and are stored again.

        Writers call this before they look for chunks that the store already has. Where reads are
        not cheap, only the first call lists the findings, so that later commits do not wait.
        """
        if not self._heeded or self.store.capabilities.cheap_reads:
            self.index.heed(self.findings.load())
            self._heeded = True

    def apart(self, *, workers: int = 1, reporter: Reporter | None = None) -> Database:
        """Return another handle of the same open store, with threads and memory of its own.

        What is done with it neither evicts what this handle remembers nor takes its threads. The
        caller closes it.

        Args:
            workers: Number of its threads.
            reporter: Receives what is reported; None for nobody.
        """
        return Database(
            self.store,
            workers=workers,
            cache_size=0,
            reporter=reporter or Reporter(),
            identity=(self.config, self.store_id),
        )

    @contextmanager
    def onlooker(self, *, direct: bool = False, keep: bool = False) -> Iterator[Database]:
        """Provide another handle of the same store that writes nothing, not even findings.

        Args:
            direct: Whether to read the store itself, past the copies that a cache has of it.
            keep: Whether these copies stay even where they are found damaged.
        """
        plain = self.objects.ability(SupportsDirect) if direct else None
        objects = self.objects if plain is None else plain.direct()
        made = Database(
            OnlookingStore(objects, keep=keep),
            workers=self.workers.count,
            cache_size=0,
            reporter=self.reporter,
            identity=(self.config, self.store_id),
            noting=False,
        )
        try:
            yield made
        finally:
            made.close()

    def learn_merged(self, merged: Merged) -> None:
        """Learn that packs were merged, before they are deleted.

        Versions that are made from now on name the new packs. A handle that does not learn it finds
        the old packs gone, and lists all packs.
        """
        self.index.replace(merged)
        self.snapshots.replace(merged)

    def close(self) -> None:
        """Stop the worker threads."""
        self.workers.close()


def _identify(store: ObjectStore) -> tuple[StoreConfig, str]:
    """Return the configuration and ID of a store, which from now on must stay there.

    Raises:
        NotFoundError: There is no store.
    """
    try:
        store.require(names.CONFIG)
        return decode_store_file(store.read(names.CONFIG, MAX_STORE_FILE))
    except NotFoundError as error:
        if error.code is ErrorCode.STORE_NOT_FOUND:  # the folder or bucket does not exist
            raise
        raise NotFoundError(
            ErrorCode.STORE_NOT_FOUND,
            f"there is no casweights store at {store.url}: make one with `casweights init` or "
            "`casweights.open(url, create=True)`",
        ) from None


def create_store(store: ObjectStore, config: StoreConfig) -> bool:
    """Create a store, or complete its creation if an earlier attempt was interrupted.

    Args:
        store: The place for it.
        config: Its configuration. A store that exists keeps its own.

    Returns:
        Whether this call created the store; False if it already existed.

    Raises:
        UnsupportedError: This kind of store cannot be shared, or cannot keep its refs elsewhere.
    """
    if config.shared and _store_file(store) is None:
        _share(store)
    else:
        store.create()
    if config.refs is None:
        return store.put(names.CONFIG, [encode_store_file(config, secrets.token_hex(16))])
    known = _store_file(store)
    if known is not None and known[0].refs not in (None, config.refs):
        return False  # the caller reads the configuration, which names the other repository
    store_id = secrets.token_hex(16) if known is None else known[1]
    # The repository must record this store's ID before casweights.json names the repository;
    # readers refuse a repository without the record. Only a caller who names the repository may
    # write the record, because anybody with access to a bucket can forge its casweights.json.
    if known is None or known[0].refs is not None:
        _ref_store(store, config.refs, store_id).create()
    return known is None and store.put(names.CONFIG, [encode_store_file(config, store_id)])


def _share(store: ObjectStore) -> None:
    """Create the store's folder so that all users of its group may write to it."""
    sharing = store.ability(SupportsSharing)
    if sharing is None:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{store.url} cannot be shared by a group of this machine's users: only stores in "
            "directories can",
        )
    sharing.share()


def _ref_store(store: ObjectStore, where: str, store_id: str) -> ObjectStore:
    """Return the separate store that keeps the refs of `store`.

    Args:
        store: The store.
        where: The repository for refs, as the configuration names it.
        store_id: The ID of `store`, which that repository must have on record.
    """
    keeper = store.ability(SupportsRefStore)
    if keeper is None:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{store.url} cannot keep its refs in {where}: only buckets can keep refs in a "
            "repository of their own",
        )
    return keeper.ref_store(where, store_id)


def _store_file(store: ObjectStore) -> tuple[StoreConfig, str] | None:
    """Return the configuration and ID in the store's own file, or None if the file is missing."""
    try:
        return decode_store_file(store.read(names.CONFIG, MAX_STORE_FILE))
    except NotFoundError:
        return None
