"""A store in a bucket."""

from __future__ import annotations

import struct
import threading
from functools import cached_property
from typing import TYPE_CHECKING

import xxhash

from casweights.errors import ErrorCode, IntegrityError, NotFoundError, StoreError
from casweights.stores.base import (
    Capabilities,
    ObjectInfo,
    ObjectStore,
    check_name,
    check_size,
    missing,
    truncated,
)
from casweights.stores.hub.api import HubApi, Place, add_line, copy_line, delete_line
from casweights.stores.hub.xet import EMPTY, XetStorage
from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from casweights.stores.base import Content, Parts
    from casweights.stores.hub.api import HubFile
    from casweights.system.buffers import Buffer

_PLACE = struct.Struct("<32sQ")
_ATTEMPTS = 3  # for operations of a batch that the Hub refuses
_MAX_SIZE = 1 << 40
_BATCH = 64 << 20  # bytes of objects from elsewhere that are copied in one go


class _Object:
    """An object to be created. Its parts are made when they are first asked for."""

    def __init__(self, name: str, content: Content) -> None:
        self.name = name
        self._content = content

    @cached_property
    def parts(self) -> Parts:
        return self._content() if callable(self._content) else self._content

    @cached_property
    def digest(self) -> bytes:
        """What tells these bytes from others."""
        digest = xxhash.xxh3_128()
        for part in self.parts:
            digest.update(part)
        return digest.digest()


class HubStore(ObjectStore):
    """Objects as files of a bucket, below a folder of it.

    A bucket has no exclusive create, and no transactions: see ``docs/format.md``.

    Args:
        bucket: The bucket, as ``"namespace/name"``.
        prefix: The folder; empty for the whole bucket.
        endpoint: The Hub; by default huggingface_hub's own (``HF_ENDPOINT``).
        token: A token; by default the one that huggingface_hub finds.
        stall: Seconds after which a transfer that moves nothing is given up.
        clock_skew: Seconds by which the clocks of the Hub's servers may differ.
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
        self.capabilities = Capabilities(exclusive_create=False, remote=True, clock_skew=clock_skew)
        self.api = HubApi(bucket, endpoint, token, stall)
        self._token = token
        self._root = f"{check_name(prefix)}/" if prefix else ""
        self._xet = XetStorage(self.api, stall)
        self._lock = threading.Lock()
        self._places: dict[str, Place] = {}
        self._hinted: set[str] = set()  # places that nobody but a hint has told
        self._sent: dict[bytes, Place] = {}  # contents that got no name yet, as far as we know
        self._required: dict[
            str, Place | None
        ] = {}  # None until the Hub was asked for the first time

    @property
    def url(self) -> str:
        """``hf://buckets/namespace/name/prefix``."""
        return f"hf://buckets/{self.api.bucket}/{self._root}".rstrip("/")

    def create(self) -> None:
        """Make the bucket, unless it is there."""
        self.api.create_bucket()

    def require(self, name: str) -> None:
        """See `ObjectStore.require`. Checked wherever the Hub is asked what is there anyway."""
        self._required.setdefault(name, None)

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        """See `ObjectStore.put`."""
        return self.put_all([(name, parts)])[0]

    def put_all(
        self,
        objects: Sequence[tuple[str, Content]],
        soon: Sequence[Parts] = (),
        *,
        new: bool = False,
    ) -> list[bool]:
        """See `ObjectStore.put_all`. One request asks what is there, one names what was sent."""
        wanted: dict[str, _Object] = {}
        for name, content in objects:
            self._path(name)  # checks it
            wanted.setdefault(name, _Object(name, content))
        asked = all(self._required.values())
        there = {} if new and asked else self._look_up_to_write(list(wanted))
        # One may be there since an earlier attempt, whose answer was lost.
        ours = {
            item.name: True
            for item in wanted.values()
            if item.name not in there
            or (self._sent and there[item.name] == self._sent.get(item.digest))
        }
        unsent = [item for item in wanted.values() if item.name not in there]
        before = set(self._sent)
        try:
            places = self._send([*unsent, *(_Object("", parts) for parts in soon)])
            lines = {name: add_line(self._path(name), place) for name, place in places.items()}
            self._carry_out(lines, list(ours))
        except BaseException as error:
            for item in unsent:
                self.forget(item.name)  # it is not there, as far as we know
            if not (_is_refusal(error) and self._forget_sent(unsent, before)):
                raise
            return self.put_all(objects, soon, new=new)
        for name in ours:
            if self._sent:
                self._sent.pop(wanted[name].digest, None)
        return [ours.pop(name, False) for name, _ in objects]

    def _send(self, items: Sequence[_Object]) -> dict[str, Place]:
        """Upload the bytes of objects that are to get their names later; where each lies now."""
        places: dict[str, Place] = {}
        new: dict[bytes, Place] = {}
        sending: list[_Object] = []

        def found(item: _Object, place: Place) -> None:
            if item.name:  # else it gets its name in a later call
                places[item.name] = place
                self._note(item.name, place)

        def contents() -> Iterator[Parts]:
            for item in items:
                known = self._sent.get(item.digest) or new.get(item.digest)
                if known is not None:  # an earlier attempt came so far
                    found(item, known)
                elif not any(map(len, item.parts)):
                    found(item, EMPTY)
                else:
                    sending.append(item)
                    yield item.parts

        def placed(place: Place) -> None:
            item = sending.pop()
            new[item.digest] = place
            found(item, place)

        self._xet.upload(contents(), placed)
        self._sent.update(new)  # now that they are durable
        return places

    def _forget_sent(self, items: Sequence[_Object], digests: set[bytes]) -> bool:
        """Forget all that was sent if these contents are among it: the Hub may have freed it.

        Returns:
            Whether they were, and so may be accepted when they are sent again.
        """
        found = not digests.isdisjoint(item.digest for item in items)
        if found:
            self._sent.clear()  # all of it, so that another refusal ends the attempts
        return found

    def _note(self, name: str, place: Place) -> None:
        with self._lock:
            self._places[name] = place
            self._hinted.discard(name)

    def _carry_out(self, lines: dict[str, dict[str, object]], names: Sequence[str]) -> None:
        """Send a batch of creations; what is refused again and again takes those behind along.

        Args:
            lines: What to send for each name.
            names: All that we create, in order: those of `lines`, and those of earlier attempts.
        """
        pending = {self._path(name): line for name, line in lines.items()}
        paths = [self._path(name) for name in names]
        for _ in range(_ATTEMPTS):
            refused = self.api.batch(list(pending.values())) if pending else {}
            pending = {path: line for path, line in pending.items() if path in refused}
        if pending:
            first = next(iter(pending))
            behind = paths[paths.index(first) :]
            self.api.batch([delete_line(path) for path in behind if path not in pending])
            raise StoreError(
                ErrorCode.IO_FAILED,
                f"the Hub refused {len(pending)} of {len(paths)} objects of a batch, the first "
                f"is {first}: {refused[first]}. What was to follow it was taken back",
            )

    def copy_from(self, source: ObjectStore, names: Sequence[str]) -> None:
        """See `ObjectStore.copy_from`. From another bucket of the same Hub, no byte moves."""
        there = self._look_up_to_write(names)
        wanted = [name for name in dict.fromkeys(names) if name not in there]
        bucket = _innermost(source)
        if isinstance(bucket, HubStore) and bucket.api.endpoint == self.api.endpoint:
            self._copy_lines(bucket, wanted)
            return
        batch: list[tuple[str, list[Buffer]]] = []
        size = 0
        for name in wanted:
            data = source.get(name)
            if size + len(data) > _BATCH and batch:
                self.put_all(batch)
                batch, size = [], 0
            batch.append((name, [data]))
            size += len(data)
        if batch:
            self.put_all(batch)

    def _copy_lines(self, source: HubStore, names: Sequence[str]) -> None:
        places = source._look_up(names)
        for name in names:
            if name not in places:
                raise missing(name)
        bucket = source.api.bucket
        lines = {name: copy_line(self._path(name), places[name], bucket) for name in names}
        try:
            self._carry_out(lines, names)
        except StoreError as error:
            there = source._look_up(names) if _is_refusal(error) else places
            for name in names:
                if name not in there:
                    raise missing(name) from error
            raise
        for name in names:
            self._note(name, places[name])

    def size(self, name: str) -> int:
        """See `ObjectStore.size`."""
        return self._locate(name).size

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """See `ObjectStore.sizes`."""
        wanted = [self._path(name) and name for name in names]
        known = {name: self._places[name] for name in wanted if name in self._places}
        known |= self._look_up([name for name in wanted if name not in known])
        return {name: place.size for name, place in known.items()}

    def exists(self, name: str) -> bool:
        """See `ObjectStore.exists`."""
        return bool(self._look_up([name]))

    def read(self, name: str, limit: int) -> bytes:
        """See `ObjectStore.read`. One request, even if nothing is known of the object."""
        path = self._path(name)
        if name not in self._places:
            self._xet.expect_downloads()
            return self.api.read(path, limit)
        return self.get(name, 0, check_size(name, self.size(name), limit))

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        """See `ObjectStore.readinto`."""
        place, hinted = self._locate(name), name in self._hinted
        try:
            self._download(name, place, start, out)
        except (NotFoundError, IntegrityError, StoreError) as error:
            # hf_xet 1.6 tells of bytes that are gone by an error, or ends before they have come.
            if not (hinted or isinstance(error, NotFoundError | IntegrityError)):
                raise
            self.forget(name)  # the place is out of date, or the hint is wrong
            now = self._locate(name)
            if now == place:
                raise
            self._download(name, now, start, out)

    def _download(self, name: str, place: Place, start: int, out: memoryview) -> None:
        if start + len(out) > place.size:
            raise truncated(name)
        try:
            self._xet.download(place, start, out, name)
        except NotFoundError:
            self.forget(name)
            raise

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        files = [
            file
            for file in self.api.tree(self._root + prefix)
            if file.path.startswith(self._root + prefix)
        ]
        self._remember(files)
        infos = [
            ObjectInfo(file.path.removeprefix(self._root), file.place.size, file.created)
            for file in files
        ]
        return iter(sorted(infos, key=lambda info: info.name))

    def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        self.delete_all([name])

    def delete_all(self, names: Sequence[str]) -> None:
        """See `ObjectStore.delete_all`. What is gone when the Hub refuses to delete it is fine."""
        pending = [self._path(name) for name in names]
        for _ in range(_ATTEMPTS):
            refused = self.api.batch([delete_line(path) for path in pending]) if pending else {}
            there = self.api.files(list(refused)) if refused else {}
            pending = [path for path in pending if path in there]
        with self._lock:
            for name in names:
                self._places.pop(name, None)
        if pending:
            raise StoreError(
                ErrorCode.IO_FAILED,
                f"the Hub refused to delete {pending[0]}: {refused[pending[0]]}",
            )

    def place(self, name: str) -> bytes | None:
        """See `ObjectStore.place`: the Xet hash and the size."""
        known = self._places.get(name)
        return None if known is None else _PLACE.pack(bytes.fromhex(known.hash), known.size)

    def hint(self, name: str, place: bytes) -> None:
        """See `ObjectStore.hint`."""
        if len(place) != _PLACE.size:
            return
        xet_hash, size = _PLACE.unpack(place)
        if size > _MAX_SIZE:
            return
        with self._lock:
            if name not in self._places:
                self._places[name] = Place(xet_hash.hex(), size)
                self._hinted.add(name)

    def forget(self, name: str) -> bool:
        """See `ObjectStore.forget`."""
        with self._lock:
            self._hinted.discard(name)
            return self._places.pop(name, None) is not None

    def ref_store(self, where: str, store_id: str) -> ObjectStore:
        """See `ObjectStore.ref_store`: a repository of the same Hub, as ``datasets/ns/name``."""
        from casweights.stores.hub.git import GitRefStore

        return GitRefStore(
            where,
            self.url,
            store_id,
            endpoint=self.api.endpoint,
            token=self._token,
            timeout=self.api.timeout,
        )

    def _path(self, name: str) -> str:
        return self._root + check_name(name)

    def _locate(self, name: str) -> Place:
        known = self._places.get(name)
        if known is None:
            known = self._look_up([name]).get(name)
        if known is None:
            raise missing(name)
        return known

    def _look_up(self, names: Sequence[str]) -> dict[str, Place]:
        """Places of the objects that are there, as the Hub knows them now."""
        if not names:
            return {}
        files = self.api.files([self._path(name) for name in names])
        return self._remember(files.values())

    def _look_up_to_write(self, names: Sequence[str]) -> dict[str, Place]:
        """The same, and raise if what is required is not among it."""
        there = self._look_up([*names, *self._required])
        for name, before in self._required.items():
            if name not in there or before not in (None, there[name]):
                raise NotFoundError(
                    ErrorCode.STORE_NOT_FOUND,
                    f"the store at {self.url} has disappeared since it was opened: "
                    f"{name} is {'not there' if name not in there else 'that of another store'}. "
                    "Nothing more is written to it",
                )
            self._required[name] = there[name]
        return there

    def _remember(self, files: Iterable[HubFile]) -> dict[str, Place]:
        found = {file.path.removeprefix(self._root): file.place for file in files}
        with self._lock:
            self._places.update(found)
            self._hinted.difference_update(found)
        return found


def _is_refusal(error: BaseException) -> bool:
    """Whether the Hub was reached and does not do what it is asked for."""
    return isinstance(error, StoreError) and error.code is ErrorCode.IO_FAILED


def _innermost(store: ObjectStore) -> ObjectStore:
    """What is inside all wrappers. Reads go through these, with their patience and caches."""
    while isinstance(store, WrapperStore):
        store = store.inner
    return store


def assets_folder() -> Path:
    """Where this machine keeps what came from the Hub, by huggingface_hub's conventions."""
    from huggingface_hub import cached_assets_path

    return cached_assets_path("casweights", "objects")
