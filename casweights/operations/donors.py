"""Donors: where `repair` gets chunks and versions that a store has lost."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from casweights.errors import IntegrityError, NotFoundError
from casweights.events import Stage
from casweights.format.layout import BYTES
from casweights.stores.optional import SupportsDirect
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from casweights.content.donated import PlainFiles
    from casweights.database import Database
    from casweights.format.dtypes import DType
    from casweights.format.snapshot import StoredSnapshot
    from casweights.ids import ChunkId, SnapshotId

THIS_MACHINE = "this machine"


class Place(NamedTuple):
    """What is known of a wanted chunk.

    Attributes:
        dtype: Element type of its bytes.
        is_header: Whether it is a piece of a header, which plain files give away first.
    """

    dtype: DType = BYTES
    is_header: bool = False


Wanted = dict["ChunkId", Place]


class Given(NamedTuple):
    """A chunk that a donor has.

    Attributes:
        chunk: Its ID, which its bytes match.
        content: Its bytes, valid until the next chunk is asked for.
    """

    chunk: ChunkId
    content: memoryview


class Donor(Protocol):
    """A place that may have what a store lacks."""

    @property
    def name(self) -> str:
        """Its name in the report."""

    def version(self, snapshot: SnapshotId) -> StoredSnapshot | None:
        """Return a version, or None if it does not have a sound copy."""

    def chunks(self, wanted: Mapping[ChunkId, Place]) -> Iterator[Given]:
        """Yield those of these chunks that it has. The caller removes what it got from `wanted`."""


class StoreDonor:
    """A store, read without writing anything to it.

    Args:
        name: Its name in the report.
        db: The store, opened as an onlooker.
    """

    def __init__(self, name: str, db: Database) -> None:
        self.name = name
        self._db = db

    def version(self, snapshot: SnapshotId) -> StoredSnapshot | None:
        """Return a version; None if the store has no sound copy of it."""
        try:
            return self._db.snapshots.load_stored(snapshot)
        except (NotFoundError, IntegrityError):
            return None

    def chunks(self, wanted: Mapping[ChunkId, Place]) -> Iterator[Given]:
        """Yield those of these chunks that the store can rebuild."""
        index, goal = self._db.index, list(wanted)
        index.search(goal)
        with self._db.reader.with_local().ahead() as announce:
            announce(goal)
            for found in self._db.workers.map(self._read, goal):
                if found is not None:
                    yield found

    def _read(self, chunk: ChunkId) -> Given | None:
        chain = self._db.index.find_chain(chunk)
        if chain is None:
            return None
        out = uninitialized(next(chain.back()).frame.raw_size)
        try:
            self._db.reader.readinto(chunk, out)
        except IntegrityError:
            return None
        return Given(chunk, out)


class MemoryDonor:
    """The chunks that a handle has in memory.

    Args:
        db: The handle.
    """

    name = THIS_MACHINE

    def __init__(self, db: Database) -> None:
        self._db = db

    def version(self, snapshot: SnapshotId) -> StoredSnapshot | None:
        """Return None: versions in memory were read from the store."""
        return None

    def chunks(self, wanted: Mapping[ChunkId, Place]) -> Iterator[Given]:
        """Yield those of these chunks that are in memory."""
        for chunk in list(wanted):
            for cache in (self._db.cache, self._db.snapshots.structure):
                content = cache.get(chunk)
                if content is not None and self._db.hasher(content) == chunk:
                    yield Given(chunk, content)
                    break


class FilesDonor:
    """Plain files: a directory, or a model repository of the Hub.

    Args:
        files: The files.
        db: The store to repair, whose rules cut the files.
    """

    def __init__(self, files: PlainFiles, db: Database) -> None:
        self.name = files.name
        self._files = files
        self._db = db

    def version(self, snapshot: SnapshotId) -> StoredSnapshot | None:
        """Return None: files have no manifests."""
        return None

    def chunks(self, wanted: Mapping[ChunkId, Place]) -> Iterator[Given]:
        """Yield those of these chunks that are in the files, those of headers first."""
        config = self._db.config
        for cut in self._files.headers(config):
            if cut.chunk in wanted:
                yield Given(cut.chunk, cut.content)
        if all(place.is_header for place in wanted.values()):
            return  # the files themselves need not be read
        self._db.reporter.started(Stage.REPAIR, self._files.nbytes)
        try:
            yield from self._read(wanted)
        finally:
            self._db.reporter.finished(Stage.REPAIR)

    def _read(self, wanted: Mapping[ChunkId, Place]) -> Iterator[Given]:
        """Read the files until everything wanted is found."""
        db = self._db
        for cut in self._files.chunks(db.config, db.hasher, db.workers):
            if cut.chunk in wanted:
                yield Given(cut.chunk, cut.content)
            if not wanted:
                return
            if cut.piece is not None:
                db.reporter.advanced(Stage.REPAIR, cut.piece.nbytes)


@contextmanager
def donors(
    db: Database, stores: Collection[tuple[str, Database]], files: Sequence[PlainFiles]
) -> Iterator[list[Donor]]:
    """Provide all donors, the nearest first: this machine, directories, and then other stores.

    Args:
        db: The store to repair.
        stores: Other stores with their names, of the same digest and chunk size.
        files: Directories and repositories.
    """
    found: list[Donor] = [MemoryDonor(db)]
    with ExitStack() as stack:
        if db.objects.ability(SupportsDirect) is not None:
            found.append(StoreDonor(THIS_MACHINE, stack.enter_context(db.onlooker(keep=True))))
        for name, other in stores:
            onlooker = stack.enter_context(other.onlooker())
            onlooker.index.heed(other.findings.load())
            found.append(StoreDonor(name, onlooker))
        found += [FilesDonor(plain, db) for plain in files]
        yield found
