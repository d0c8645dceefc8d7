"""New objects of a bucket: first their bytes, then their names.

The bytes of an object pass through four states:

* *held*: `Batch.put` has them, and keeps them until the batch ends, for another attempt.
* *sent*: hf_xet has taken them and told their hash, so their locator is known. They may still be
  lost. If they are in the bucket already under this name, or are durable since an earlier batch,
  this state is skipped.
* *durable*: the upload is finished. They have no name, nobody sees them, and some time later the
  Hub frees them. `Uploads` remembers them, so that a repeated batch does not send them again.
* *named*: the Hub has accepted the line that gives them a name. `Uploads` forgets them.

A batch asks the Hub once what is there (when the first object is put), uploads in one go, and sends
the names of all objects in one request at the end. No lock is held on the way: a batch belongs to
one thread, and what batches share, `Uploads`, has a lock around each look and each change.

What may fail: an answer may be lost when the bytes are durable (the next attempt finds them in
`Uploads`) or named (the next attempt finds its own locator under the name, and counts the object as
created). And the Hub may have freed durable bytes: then it refuses their names, and the batch
starts over once, with nothing remembered.
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
        """What tells these bytes from others."""
        digest = xxhash.xxh3_128()
        for part in self.parts:
            digest.update(part)
        return digest.digest()


class Uploads:
    """Batches into a folder of a bucket, and the contents that are durable without a name.

    Args:
        folder: Where the objects go.
        xet: Where their bytes go.
    """

    def __init__(self, folder: BucketFolder, xet: XetStorage) -> None:
        self.folder = folder
        self.xet = xet
        self._lock = threading.Lock()
        self._durable: dict[bytes, XetLocator] = {}  # by digest

    def batch(self, names: Sequence[str], *, assume_absent: bool) -> Batch:
        """See `ObjectStore.batch`."""
        for name in names:
            self.folder.path(name)  # checks it
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
                    self._durable.clear()  # all of it may be freed; a second refusal is final
                call()

        return ReplayedBatch(begin, run)

    def find(self, content: _Content) -> XetLocator | None:
        """Where a content lies that is durable and has no name."""
        if not self._durable:  # then its digest is not needed, and may never be
            return None
        with self._lock:
            return self._durable.get(content.digest)

    def keep(self, contents: Mapping[bytes, XetLocator]) -> None:
        """Remember contents, by digest, that are durable now."""
        with self._lock:
            self._durable.update(contents)

    def drop(self, content: _Content) -> None:
        """Forget a content that has a name now."""
        if self._durable:
            with self._lock:
                self._durable.pop(content.digest, None)


class _Attempt(Batch):
    """One attempt to put a batch; after an error it is of no use any more.

    Attributes:
        counts_on_earlier: Whether an object's bytes were not sent because they are durable since an
            earlier attempt.
    """

    def __init__(self, uploads: Uploads, names: Sequence[str], *, assume_absent: bool) -> None:
        self._uploads = uploads
        self._folder = uploads.folder
        self._names = dict.fromkeys(names)
        self._assume_absent = assume_absent
        self._there: Mapping[str, XetLocator] | None = None
        self._upload = uploads.xet.upload()
        self._sent: dict[bytes, XetLocator] = {}  # by digest
        self._ours: dict[str, _Content] = {}  # what this writer creates, now or in lost answers
        self._unnamed: dict[str, XetLocator] = {}
        self.counts_on_earlier = False
        self.created = set()

    def put(self, name: str, parts: Parts) -> None:
        """See `Batch.put`."""
        content = _Content(parts)
        there = self._look_up().get(check_member(name, self._names))
        if there is None:
            if name not in self._unnamed:
                self._ours[name] = content
                self._unnamed[name] = locator = self._send(content, named=True)
                self._folder.known.confirm({name: locator})
        elif there == self._uploads.find(content):  # named by an attempt whose answer was lost
            self._ours[name] = content

    def send(self, parts: Parts) -> None:
        """See `Batch.send`."""
        self._send(_Content(parts), named=False)

    def _look_up(self) -> Mapping[str, XetLocator]:
        if self._there is None:
            if self._assume_absent and self._folder.is_checked:
                self._there = {}
            else:
                self._there = self._folder.look_up_to_write(list(self._names))
        return self._there

    def _send(self, content: _Content, *, named: bool) -> XetLocator:
        """Upload bytes, unless they are durable or on their way; where they lie."""
        durable = self._uploads.find(content)
        if durable is not None:
            self.counts_on_earlier |= named
            return durable
        if not any(map(len, content.parts)):
            return EMPTY
        if content.digest not in self._sent:
            self._sent[content.digest] = self._upload.send(content.parts)
        return self._sent[content.digest]

    def finish(self) -> None:
        """See `Batch.finish`."""
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
        """See `Batch.abandon`. Nothing tells now whether an object got its name."""
        self._upload.abandon()
        for name in self._unnamed:
            self._folder.known.forget(name)
