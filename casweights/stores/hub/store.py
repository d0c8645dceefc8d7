"""A store in a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import IntegrityError, NotFoundError, StoreError
from casweights.stores.base import (
    Capabilities,
    ObjectInfo,
    ObjectStore,
    check_name,
    check_size,
    missing,
    truncated,
)
from casweights.stores.hub.api import HubApi, copy_line
from casweights.stores.hub.bucket import BucketFolder, is_refusal
from casweights.stores.hub.locators import XetLocator
from casweights.stores.hub.uploads import Uploads
from casweights.stores.hub.xet import XetStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from casweights.stores.base import Batch
    from casweights.system.buffers import Buffer

_GROUP = 64 << 20  # bytes of objects from elsewhere that are held in memory and put in one batch


class HubStore(ObjectStore):
    """Objects as files of a bucket, below a folder of it.

    A bucket has no exclusive create, and no transactions: see ``docs/format.md``. Three parts do
    the work: `BucketFolder` asks and names, `Uploads` writes, and `XetStorage` moves bytes.

    Args:
        bucket: The bucket, as ``"namespace/name"``.
        prefix: The folder; empty for the whole bucket.
        endpoint: The Hub; by default huggingface_hub's own (``HF_ENDPOINT``).
        token: A token; by default the one that huggingface_hub finds.
        stall: Seconds after which a transfer that moves nothing is given up.
        clock_skew: Seconds by which the clocks of the Hub's servers may differ.

    Attributes:
        api: Requests about the bucket.
        folder: The files that the objects are.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        token: str | None = None,
        stall: float = 30.0,
        clock_skew: float = 30.0,
    ) -> None:
        self.capabilities = Capabilities(
            listing_lags=True,
            cheap_reads=False,
            parallel_puts=2,  # keep a network busy; the client has memory of its own for each
            clock_skew=clock_skew,
        )
        self.api = HubApi(bucket, endpoint, token, stall)
        self.folder = BucketFolder(self.api, prefix)
        self._token = token
        self._xet = XetStorage(self.api, stall)
        self._uploads = Uploads(self.folder, self._xet)

    @property
    def url(self) -> str:
        """``hf://buckets/namespace/name/prefix``."""
        return self.folder.url

    def create(self) -> None:
        """Make the bucket, unless it is there."""
        self.api.create_bucket()

    def require(self, name: str) -> None:
        """See `ObjectStore.require`. Checked wherever the Hub is asked before a write anyway."""
        self.folder.require(name)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        return self.put_all([(name, parts)])[0]

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        """See `ObjectStore.batch`. One request asks what is there, one names what was sent."""
        return self._uploads.batch(names, assume_absent=assume_absent)

    def copy_from(self, source: ObjectStore, names: Sequence[str]) -> None:
        """See `ObjectStore.copy_from`. From another bucket of the same Hub, no byte moves."""
        there = self.folder.look_up_to_write(names)
        wanted = [name for name in dict.fromkeys(names) if name not in there]
        bucket = source.ability(HubStore)
        if bucket is not None and bucket.api.endpoint == self.api.endpoint:
            self._copy_lines(bucket, dict(zip(wanted, wanted, strict=True)))
            return
        group: list[tuple[str, list[Buffer]]] = []
        size = 0
        for name in wanted:
            data = source.get(name)  # through its wrappers, with their patience and caches
            if size + len(data) > _GROUP and group:
                self.put_all(group)
                group, size = [], 0
            group.append((name, [data]))
            size += len(data)
        if group:
            self.put_all(group)

    def copy(self, name: str, new_name: str) -> bool:
        """See `SupportsCopy.copy`. One request looks both up, one makes the copy."""
        there = self.folder.look_up_to_write([name, new_name])
        if name not in there:
            raise missing(name)
        if new_name not in there:
            self._copy_lines(self, {new_name: name})
        return new_name not in there

    def _copy_lines(self, source: HubStore, names: dict[str, str]) -> None:
        """Give the bytes of objects of a bucket names in this one.

        Args:
            source: The bucket.
            names: The names there, by the names here.
        """
        olds, bucket = list(names.values()), source.api.bucket
        found = source.folder.look_up(olds)
        _check_all_there(olds, found)
        lines = {
            new: copy_line(self.folder.path(new), found[old], bucket) for new, old in names.items()
        }
        try:
            self.folder.create(lines, list(names))
        except StoreError as error:
            if is_refusal(error):
                _check_all_there(olds, source.folder.look_up(olds))
            raise
        self.folder.known.confirm({new: found[old] for new, old in names.items()})

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        return self.folder.locate(check_name(name)).size

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """See `ObjectStore.sizes`."""
        found = {check_name(name): self.folder.known.get(name) for name in names}
        looked_up = self.folder.look_up([name for name, known in found.items() if known is None])
        return {
            name: locator.size
            for name, locator in (found | looked_up).items()
            if locator is not None
        }

    def exists(self, name: str) -> bool:
        """See `ObjectStore.exists`."""
        return bool(self.folder.look_up([name]))

    def read(self, name: str, limit: int) -> bytes:
        """See `ObjectStore.read`. One request, even if nothing is known of the object."""
        path, known = self.folder.path(name), self.folder.known.get(name)
        if known is None:
            self._xet.expect_downloads()
            return self.api.read(path, limit)
        return self.get(name, 0, check_size(name, known.size, limit))

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        locator, claimed = self.folder.locate(name), self.folder.known.is_claimed(name)
        try:
            self._download(name, locator, start, out)
        except (NotFoundError, IntegrityError, StoreError) as error:
            # hf_xet 1.6 tells of bytes that are gone by an error, or ends before they have come.
            if not (claimed or isinstance(error, NotFoundError | IntegrityError)):
                raise
            self.forget(name)  # the locator is out of date, or was never right
            now = self.folder.locate(name)
            if now == locator:
                raise
            self._download(name, now, start, out)

    def _download(self, name: str, locator: XetLocator, start: int, out: memoryview) -> None:
        if start + len(out) > locator.size:
            raise truncated(name)
        try:
            self._xet.download(locator, start, out, name)
        except NotFoundError:
            self.forget(name)
            raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        return iter(self.folder.list(prefix))

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        """See `ObjectStore.delete_all`."""
        self.folder.delete(names)

    def locator(self, name: str) -> bytes | None:
        """See `SupportsLocators.locator`: the Xet hash and the size."""
        known = self.folder.known.get(name)
        return None if known is None else known.encode()

    def use_locator(self, name: str, locator: bytes) -> None:
        """See `SupportsLocators.use_locator`."""
        decoded = XetLocator.decode(locator)
        if decoded is not None:
            self.folder.known.claim(name, decoded)

    def forget(self, name: str) -> bool:
        """See `ObjectStore.forget`."""
        return self.folder.known.forget(name)

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        """See `SupportsRefStore`: a repository of the same Hub, as ``datasets/ns/name``."""
        from casweights.stores.hub.git import GitRefStore

        return GitRefStore(
            where,
            self.url,
            store_id,
            endpoint=self.api.endpoint,
            token=self._token,
            timeout=self.api.timeout,
        )


def _check_all_there(names: Sequence[str], found: dict[str, XetLocator]) -> None:
    for name in names:
        if name not in found:
            raise missing(name)


def assets_folder() -> Path:
    """Where this machine keeps what came from the Hub, by huggingface_hub's conventions."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("casweights", "objects")
