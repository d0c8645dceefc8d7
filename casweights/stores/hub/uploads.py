"""Uploads of new objects to a bucket: first their bytes, then their names.

The bytes of an object pass through four states:

* *held*: `Batch.put` has received them. They stay in memory until the batch ends, for retries.
* *sent*: hf_xet has accepted them and returned their hash, so their locator is known. They may
  still be lost. Bytes that exist in the bucket under this name, or that are durable since an
  earlier batch, skip this state.
* *durable*: the upload is finished. The bytes have no name, so readers do not see them, and the
  Hub will free them some time later. `Uploads` remembers them, so a repeated batch does not send
  them again.
* *named*: the Hub has accepted the operation that gives them a name. `Uploads` forgets them.

A batch looks up all its names in one request (before its first object), uploads all bytes in one
upload, and names all objects in one request at the end. Each batch belongs to one thread. Batches
share an `Uploads`, which locks each access and holds no lock during a request.

Two things may fail. First, an answer may be lost. If the bytes were durable, the next attempt finds
them in `Uploads`; if they were named, it finds its own locator under the name and counts the object
as created. Second, the Hub may have freed durable bytes. It then refuses their names, and the batch
starts over once, with an empty `Uploads`.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

import xxhash

from casweights.errors import StoreError
from casweights.stores.base import Batch, check_member
from casweights.stores.hub.api import add_line
from casweights.stores.hub.bucket import is_refusal
from casweights.stores.hub.locators import EMPTY
from casweights.stores.wrapper import ReplayedBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casweights.stores.base import Parts
    from casweights.stores.hub.bucket import BucketFolder
    from casweights.stores.hub.locators import XetLocator
    from casweights.stores.hub.xet import XetStorage


class _Content:
    """Bytes to be uploaded."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    @cached_property
    def digest(self) -> bytes:
        """Digest that identifies these bytes."""
        digest = xxhash.xxh3_128()
        for part in self.parts:
            digest.update(part)
        return digest.digest()


class Uploads:
    """Batches for one folder of a bucket, and their memory of durable bytes without a name.

    Args:
        folder: Folder that the objects are put in.
        xet: Storage that the bytes are uploaded to.
    """

    def __init__(self, folder: BucketFolder, xet: XetStorage) -> None:
        self.folder = folder
        self.xet = xet
        self._lock = threading.Lock()
        self._durable: dict[bytes, XetLocator] = {}  # by digest of the content

    def batch(self, names: Sequence[str], *, assume_absent: bool) -> Batch:
        """Begin a batch, as `ObjectStore.batch` does."""
        for name in names:
            self.folder.path(name)  # raises if the name is not valid
        attempts: list[_Attempt] = []

        def begin() -> Batch:
            attempts.append(_Attempt(self, names, assume_absent=assume_absent))
            return attempts[-1]

        def run(call: Callable[[], None]) -> None:
            try:
                call()
            except StoreError as error:
                if not (is_refusal(error) and attempts[-1].counts_on_earlier):
                    raise
                with self._lock:
                    self._durable.clear()  # any of it may be freed; a second refusal is final
                call()

        return ReplayedBatch(begin, run)

    def find(self, content: _Content) -> XetLocator | None:
        """Return the locator of a content that is durable and has no name; None for others."""
        if not self._durable:  # saves computing the digest
            return None
        with self._lock:
            return self._durable.get(content.digest)

    def keep(self, contents: Mapping[bytes, XetLocator]) -> None:
        """Remember contents that are durable now, by digest."""
        with self._lock:
            self._durable.update(contents)

    def drop(self, content: _Content) -> None:
        """Forget a content, because it has a name now."""
        if self._durable:
            with self._lock:
                self._durable.pop(content.digest, None)


class _Attempt(Batch):
    """One attempt to put a batch; unusable after an error.

    Attributes:
        counts_on_earlier: Whether the attempt skipped the upload of an object's bytes, because
            they are durable since an earlier attempt.
    """

    def __init__(self, uploads: Uploads, names: Sequence[str], *, assume_absent: bool) -> None:
        self._uploads = uploads
        self._folder = uploads.folder
        self._names = dict.fromkeys(names)
        self._assume_absent = assume_absent
        self._there: Mapping[str, XetLocator] | None = None
        self._upload = uploads.xet.upload()
        self._sent: dict[bytes, XetLocator] = {}  # by digest
        # Objects that this writer creates, or created in an attempt whose answer was lost.
        self._ours: dict[str, _Content] = {}
        self._unnamed: dict[str, XetLocator] = {}
        self.counts_on_earlier = False
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        content = _Content(parts)
        there = self._look_up().get(check_member(name, self._names))
        if there is None:
            if name not in self._unnamed:
                self._ours[name] = content
                self._unnamed[name] = locator = self._send(content)
                self._folder.known.confirm({name: locator})
        # An earlier attempt named the object, but its answer was lost.
        elif there == self._uploads.find(content):
            self._ours[name] = content

    def _look_up(self) -> Mapping[str, XetLocator]:
        """Return the locators of the batch's names that exist; sends a request only once.

        Sends none if the caller guarantees that the names are free, and the store was checked.
        """
        if self._there is None:
            if self._assume_absent and self._folder.is_checked:
                self._there = {}
            else:
                self._there = self._folder.look_up_to_write(list(self._names))
        return self._there

    def _send(self, content: _Content) -> XetLocator:
        """Upload bytes, unless they are durable or already sent, and return their locator."""
        durable = self._uploads.find(content)
        if durable is not None:
            self.counts_on_earlier = True
            return durable
        if not any(map(len, content.parts)):
            return EMPTY
        if content.digest not in self._sent:
            self._sent[content.digest] = self._upload.send(content.parts)
        return self._sent[content.digest]

    def finish(self) -> None:
        self._upload.finish()
        self._uploads.keep(self._sent)
        lines = {
            name: add_line(self._folder.path(name), locator)
            for name, locator in self._unnamed.items()
        }
        self._folder.create(lines, list(self._ours))
        for content in self._ours.values():
            self._uploads.drop(content)
        self.created.update(self._ours)

    def abandon(self) -> None:
        self._upload.abandon()
        for name in self._unnamed:
            self._folder.known.forget(name)
