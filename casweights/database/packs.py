"""Lists the packs of a store and reads their indexes, also those that snapshots carry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self, overload

from casweights.config import KiB
from casweights.errors import IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, corrupt, prefix
from casweights.format.pack import (
    TRAILER_SIZE,
    Location,
    index_span,
    pack_id,
    parse_index,
)
from casweights.format.snapshot import SnapshotEnd, check_manifest, end_span, parse_end
from casweights.ids import CarriedPackId, ChunkId, SnapshotId
from casweights.stores.base import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.errors import CasweightsError
    from casweights.format.pack import FrameColumns
    from casweights.format.snapshot import SnapshotIndex, StoredSnapshot
    from casweights.ids import PackId
    from casweights.stores.base import ObjectStore

_TAIL_BYTES = 8 * KiB  # first read, from the end of a pack: covers most indexes in one request


class PackLocations(Sequence[Location]):
    """The locations of the frames in a pack that was read; each is made when it is asked for.

    Args:
        pack: The pack.
        frames: All its frames.

    Attributes:
        pack: The pack.
        frames: All its frames.
    """

    def __init__(self, pack: PackId, frames: FrameColumns) -> None:
        self.pack = pack
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    @overload
    def __getitem__(self, n: int) -> Location: ...
    @overload
    def __getitem__(self, n: slice) -> Sequence[Location]: ...
    def __getitem__(self, n: int | slice) -> Location | Sequence[Location]:
        if isinstance(n, slice):
            return [Location(self.pack, frame) for frame in self.frames[n]]
        return Location(self.pack, self.frames[n])

    def __iter__(self) -> Iterator[Location]:
        return map(partial(Location, self.pack), self.frames)

    def at(self, n: int) -> Location:
        """Return the location of a frame that exists; faster than ``[n]``."""
        return Location(self.pack, self.frames.at(n))


class PackContents(NamedTuple):
    """The content of a pack according to its index.

    Attributes:
        info: The pack's name and size.
        generation: The pack's generation: 0 for packs of a commit, more for packs of a repack.
        locations: The pack's frames.
    """

    info: ObjectInfo
    generation: int
    locations: Sequence[Location]

    @classmethod
    def of(cls, stored: StoredSnapshot) -> Self:
        """Return the content of a snapshot's object as that of a pack."""
        info = ObjectInfo(names.snapshot_name(stored.snapshot.id), stored.nbytes)
        return cls(info, 0, stored.locations)

    @property
    def frame_bytes(self) -> int:
        """Stored bytes of all its frames."""
        if isinstance(self.locations, PackLocations):
            end: int = self.locations.frames.end
            return end - PREFIX_SIZE
        return sum(at.frame.size for at in self.locations)

    def compact(self) -> None:
        """Take less memory, where many packs are kept."""
        if isinstance(self.locations, PackLocations):
            self.locations.frames.compact()

    def chunks(self) -> Iterator[bytes]:
        """Yield the ID of each frame's chunk."""
        if isinstance(self.locations, PackLocations):
            yield from self.locations.frames.chunks
        else:
            yield from (at.frame.chunk for at in self.locations)

    def bases(self) -> Iterator[ChunkId]:
        """Yield the bases of its frames, roots included."""
        if isinstance(self.locations, PackLocations):
            yield from map(ChunkId, self.locations.frames.bases)
        else:
            yield from (base for at in self.locations for base in at.frame.bases)


def list_packs(store: ObjectStore, *, carried: bool = True) -> Iterator[ObjectInfo]:
    """Return the objects that may hold frames: packs, and the objects of snapshots.

    Objects in their folders with other names are left out. Snapshots come first, because chunks
    move from them to packs, and a chunk that moves in between is then listed twice.

    Args:
        store: The store.
        carried: Whether to list snapshots, too.
    """
    folders = (names.SNAPSHOTS, names.PACKS) if carried else (names.PACKS,)
    return (info for folder in folders for info in store.list(folder) if is_pack(info.name))


def is_pack(name: str) -> bool:
    """Whether an object has the name of a pack, or of a snapshot."""
    try:
        names.pack_of(name)
    except IntegrityError:
        return False
    return True


def read_pack_index(store: ObjectStore, info: ObjectInfo) -> Sequence[Location]:
    """Return the frames of a pack, read from its index; raise the errors of `read_pack`."""
    return read_pack(store, info).locations


def read_pack(store: ObjectStore, info: ObjectInfo, *, trusting: bool = False) -> PackContents:
    """Read which frames a pack, or the object of a snapshot, contains.

    The index of a pack is checked against the pack's name. That of a snapshot's object is checked
    against its checksum, and the manifest against the name.

    Args:
        store: The store that contains the pack.
        info: The object's name and size.
        trusting: Whether to save a read by not checking the object's first bytes, on which no frame
            depends.

    Raises:
        NotFoundError: The pack is gone.
        IntegrityError: The pack is damaged, or its content does not match its name.
        UnsupportedError: A newer casweights wrote the pack.
    """
    pack = names.pack_of(info.name)
    if isinstance(pack, CarriedPackId):
        index = read_snapshot_index(store, info, trusting=trusting)
        check_manifest(index, SnapshotId(pack), info.name)
        frames, generation = index.frames, 0
    else:
        frames = _read_pack_index(store, info, pack, trusting=trusting)
        generation = frames.generation
    return PackContents(info, generation, PackLocations(pack, frames))


def _read_pack_index(
    store: ObjectStore, info: ObjectInfo, pack: PackId, *, trusting: bool
) -> FrameColumns:
    """Return the frames of a pack; raise the errors of `read_pack`."""
    tail = _Tail.read(store, info)
    start, stop = index_span(tail.last_bytes, info.size, info.name)
    index, first_bytes = tail.get(start, stop), prefix(ObjectKind.PACK)
    if not trusting or pack_id(first_bytes, index) != pack:
        first_bytes = tail.get(0, PREFIX_SIZE)
    return parse_index(first_bytes, index, start, pack, info.name)


def read_snapshot_index(
    store: ObjectStore, info: ObjectInfo, tail: bytes | None = None, *, trusting: bool = False
) -> SnapshotIndex:
    """Read the index of a snapshot's object.

    Args:
        store: The store that contains the object.
        info: The object's name and size.
        tail: The object's end, if it was read.
        trusting: As for `read_pack`.

    Raises:
        NotFoundError: The object is gone.
        IntegrityError: The object is damaged.
        UnsupportedError: A newer casweights wrote it.
    """
    end = _Tail.read(store, info) if tail is None else _Tail(store, info, tail)
    start, stop = end_span(end.last_bytes, info.size, info.name)
    found = SnapshotEnd(start, end.get(start, stop), end.get(stop, info.size - TRAILER_SIZE))
    first_bytes = prefix(ObjectKind.SNAPSHOT)
    if not trusting or not found.fits(first_bytes):
        first_bytes = end.get(0, PREFIX_SIZE)
    return parse_end(first_bytes, found, info.name)


def try_read_pack(store: ObjectStore, info: ObjectInfo) -> PackContents | CasweightsError:
    """Read the index of a pack, and return an error for a damaged or missing pack.

    If a cache of the store may hold a damaged copy, it is discarded and the pack read again.

    Raises:
        UnsupportedError: A newer casweights wrote the pack.
        StoreError: The store could not be read.
    """
    trusting = not store.capabilities.cheap_reads
    try:
        return read_pack(store, info, trusting=trusting)
    except (IntegrityError, NotFoundError) as error:
        if not store.forget(info.name):
            return error
    try:
        size = store.sizes([info.name]).get(info.name, info.size)
        return read_pack(store, ObjectInfo(info.name, size), trusting=trusting)
    except (IntegrityError, NotFoundError) as error:
        return error


class _Tail(NamedTuple):
    """The end of an object, which was read, and access to the rest of it."""

    store: ObjectStore
    info: ObjectInfo
    data: bytes

    @classmethod
    def read(cls, store: ObjectStore, info: ObjectInfo) -> Self:
        """Read the end of an object."""
        start = max(0, info.size - _TAIL_BYTES)
        return cls(store, info, store.get(info.name, start, info.size - start))

    @property
    def last_bytes(self) -> bytes:
        """The object's trailer; raises `IntegrityError` if the object is too short for one."""
        if self.info.size < PREFIX_SIZE + TRAILER_SIZE:
            raise corrupt(self.info.name, "it is too short")
        return self.data[-TRAILER_SIZE:]

    def get(self, start: int, stop: int) -> bytes:
        """Return a range of the object, which is read if it begins before the end."""
        before = self.info.size - len(self.data)
        if start < before:
            return self.store.get(self.info.name, start, stop - start)
        return self.data[start - before : stop - before]
