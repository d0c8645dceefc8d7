"""A store in a bucket of the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import IntegrityError, NotFoundError, StoreError
from casweights.stores.base import (
    NO_NAMES,
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
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from casweights.stores.base import Batch
    from casweights.system.buffers import Buffer

_GROUP = 64 << 20  # bytes; objects copied from elsewhere are put in batches of about this size


class HubStore(ObjectStore):
    """Objects as files of a bucket, below a folder of it.

    A bucket has neither exclusive creation nor transactions; ``docs/format.md`` says how writers
    deal with that. `BucketFolder` looks up and names objects, `Uploads` puts batches, and
    `XetStorage` transfers bytes.

    Args:
        bucket: Name of the bucket, as ``"namespace/name"``.
        prefix: Path of the folder; empty for the whole bucket.
        endpoint: URL of the Hub; by default huggingface_hub's own (``HF_ENDPOINT``).
        token: Access token; by default the one that huggingface_hub finds.
        stall: Seconds without progress after which a transfer or request fails.
        clock_skew: Seconds by which the clocks of the Hub's servers may differ.

    Attributes:
        api: Requests about the bucket.
        folder: The folder that contains the objects.
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
            parallel_puts=2,  # enough for a network, and hf_xet needs its own memory for each
            clock_skew=clock_skew,
        )
        self.api = HubApi(bucket, endpoint, token, stall)
        self.folder = BucketFolder(self.api, prefix)
        self._token = token
        self._xet = XetStorage(self.api, stall)
        self._uploads = Uploads(self.folder, self._xet)

    @property
    def url(self) -> str:
        """URL of the store, ``hf://buckets/namespace/name/prefix``."""
        return self.folder.url

    def create(self) -> None:
        """Create the bucket, unless it exists."""
        self.api.create_bucket()

    def require(self, name: str) -> None:
        self.folder.require(name)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        return self.put_all([(name, parts)])[0]

    def batch(self, names: Sequence[str], *, assume_absent: bool = False) -> Batch:
        return self._uploads.batch(names, assume_absent=assume_absent)

    def copy_from(
        self, source: ObjectStore, names: Sequence[str], called: Mapping[str, str] = NO_NAMES
    ) -> None:
        bucket, olds = source.ability(HubStore), {name: called.get(name, name) for name in names}
        there = self.folder.look_up_to_write([*olds, *(olds.values() if bucket is self else ())])
        wanted = {name: old for name, old in olds.items() if name not in there}
        if bucket is not None and bucket.api.endpoint == self.api.endpoint:
            found = there if bucket is self else bucket.folder.look_up(list(wanted.values()))
            self._copy_lines(bucket, wanted, found)
            return
        group: list[tuple[str, list[Buffer]]] = []
        size = 0
        for name, old in wanted.items():
            data = source.get(old)  # through its wrappers, which retry and cache
            if size + len(data) > _GROUP and group:
                self.put_all(group)
                group, size = [], 0
            group.append((name, [data]))
            size += len(data)
        if group:
            self.put_all(group)

    def copy(self, name: str, new_name: str) -> bool:
        """Copy an object within the bucket: one request looks both up, one makes the copy."""
        there = self.folder.look_up_to_write([name, new_name])
        if name not in there:
            raise missing(name)
        if new_name not in there:
            self._copy_lines(self, {new_name: name}, there)
        return new_name not in there

    def _copy_lines(
        self, source: HubStore, names: dict[str, str], found: dict[str, XetLocator]
    ) -> None:
        """Copy objects within the Hub, from another bucket or this one.

        Args:
            source: Store of the bucket to copy from.
            names: Names of the objects in `source`, by their new names here.
            found: Locators of the objects in `source`.
        """
        olds, bucket = list(names.values()), source.api.bucket
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
        return self.folder.locate(check_name(name)).size

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        found = {check_name(name): self.folder.known.get(name) for name in names}
        looked_up = self.folder.look_up([name for name, known in found.items() if known is None])
        return {
            name: locator.size
            for name, locator in (found | looked_up).items()
            if locator is not None
        }

    def present(self, names: Iterable[str]) -> set[str]:
        return set(self.folder.look_up([check_name(name) for name in names]))

    def exists(self, name: str) -> bool:
        return bool(self.folder.look_up([name]))

    def read(self, name: str, limit: int) -> bytes:
        path, known = self.folder.path(name), self.folder.known.get(name)
        if known is None:
            self._xet.expect_downloads()
            return self.api.read(path, limit)
        return self.get(name, 0, check_size(name, known.size, limit))

    def read_end(self, name: str, most: int) -> tuple[bytes, int]:
        known = self.folder.known.get(name)
        if known is not None:
            return super().read_end(name, most)
        self._xet.expect_downloads()
        try:
            data, found = self.api.read_end(self.folder.path(name), most)
        except IntegrityError:  # the server does not return ends
            return super().read_end(name, most)
        if isinstance(found, int):
            return data, found
        self.folder.known.confirm({name: found})
        return data, found.size

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        locator, claimed = self.folder.locate(name), self.folder.known.is_claimed(name)
        try:
            self._download(name, locator, start, out)
        except (NotFoundError, IntegrityError, StoreError) as error:
            # hf_xet 1.6 reports freed bytes by an error, or ends the stream early.
            if not (claimed or isinstance(error, NotFoundError | IntegrityError)):
                raise
            self.forget(name)  # the locator is out of date, or was wrong from the start
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
        return iter(self.folder.list(prefix))

    def delete(self, name: str) -> None:
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        self.folder.delete(names)

    def locator(self, name: str) -> bytes | None:
        """Return an object's Xet hash and size, encoded as bytes; None if they are not known."""
        known = self.folder.known.get(name)
        return None if known is None else known.encode()

    def use_locator(self, name: str, locator: bytes) -> None:
        """Read an object from a locator until the Hub reports another; ignore an invalid one."""
        decoded = XetLocator.decode(locator)
        if decoded is not None:
            self.folder.known.claim(name, decoded)

    def forget(self, name: str) -> bool:
        return self.folder.known.forget(name)

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        """Return a store for refs in a repository of the same Hub, ``datasets/namespace/name``."""
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
    """Return the folder for cached objects in huggingface_hub's cache, and create it."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("casweights", "objects")
