"""Archives of old versions: finds and reads the snapshot objects in them.

`maintain` moves the snapshot objects of old versions into archives, and deletes them one by one
afterwards. So a version without an object of its own is in an archive, and an archive that is gone
was merged into another one.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from casweights.config import KiB, MiB
from casweights.database.aside import list_aside
from casweights.database.expired import removed
from casweights.errors import CasweightsError, ErrorCode, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.archive import ENDING_SIZE, ROW_SIZE, Ending, Member, Rows
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix
from casweights.format.names import parse_id
from casweights.ids import ArchiveId, SnapshotId
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casweights.database.expired import ExpiredStore
    from casweights.stores.base import ObjectInfo, ObjectStore

T = TypeVar("T")

_TAIL_BYTES = 64 * KiB  # first read, from the end: all rows of 1,489 versions
_WHOLE_ROWS = MiB  # bytes: up to this many are read at once, those of 23,831 versions
# A guess is off by more than this many times the root of the number of rows once in 10^9 times.
_MARGIN = 3
_WINDOWED_SHARE = 1 / 4  # of the rows: after that much was read in windows, all are read
_BLOCK = 256 * KiB  # bytes of snapshot objects that are read together over a network
_BLOCKS = 16  # in memory: enough for readers of several archives that go by age
_READERS = 16  # threads that wait for the network
_HEX_DIGITS = 64  # of an ID
_MAX_LOOKS = 3  # archives may be merged between a listing and the read of a version


class Place(NamedTuple):
    """Where an archive holds the snapshot object of a version.

    Attributes:
        archive: Name of the archive.
        member: The place in it.
        end: Offset at which the archive's snapshot objects end.
    """

    archive: str
    member: Member
    end: int


class _OpenArchive:
    """An archive whose rows can be searched. `Archives` uses it under its lock.

    Args:
        store: The store that contains it.
        info: Its name and size.

    Raises:
        NotFoundError: It is gone.
        IntegrityError: It is damaged.
        UnsupportedError: A newer casweights wrote it.
    """

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        self._store = store
        self.name = info.name
        tail_start = max(0, info.size - _TAIL_BYTES)
        tail = store.get(info.name, tail_start, info.size - tail_start)
        self._ending = Ending.parse(tail[-ENDING_SIZE:], info.size, info.name)
        self.generation = self._ending.generation
        self._whole: Rows | None = None
        self._windowed = 0  # rows that were read in windows
        if self._ending.start >= tail_start:
            self._whole = self._checked(tail[self._ending.start - tail_start : -ENDING_SIZE])
        elif self._ending.versions * ROW_SIZE <= _WHOLE_ROWS:
            self.read_all()

    def read_all(self) -> Rows:
        """Return all rows. Only these are checked; a row of a window may be damaged."""
        if self._whole is None:
            self._whole = self._checked(self._read(0, self._ending.versions))
        return self._whole

    def members(self) -> list[SnapshotId]:
        """Return the versions in it, after all rows were checked."""
        return [member.snapshot for member in self.read_all().members()]

    def _checked(self, encoded: bytes) -> Rows:
        first_bytes, is_far = prefix(ObjectKind.ARCHIVE), not self._store.capabilities.cheap_reads
        if not (is_far and self._ending.fits(first_bytes, encoded)):  # else a request is saved
            first_bytes = self._store.get(self.name, 0, PREFIX_SIZE)
        self._ending.check(first_bytes, encoded, self.name)
        return Rows(encoded, self._ending.start, self.name)

    def _read(self, first: int, stop: int) -> bytes:
        start = self._ending.start + first * ROW_SIZE
        return self._store.get(self.name, start, (stop - first) * ROW_SIZE)

    def between(self, low: bytes, high: bytes) -> list[Place]:
        """Return the places of the versions with IDs from `low` to `high`, ordered by ID."""
        if self._whole is None and self._windowed > _WINDOWED_SHARE * self._ending.versions:
            self.read_all()
        rows = self._window(low, high) if self._whole is None else self._whole
        found = map(rows.member, rows.between(low, high))
        return [Place(self.name, member, self._ending.start) for member in found]

    def _window(self, low: bytes, high: bytes) -> Rows:
        """Read the rows around the place where these IDs are, if they are evenly distributed."""
        count = self._ending.versions
        margin = math.ceil(_MARGIN * math.sqrt(count))
        first, stop = _guess(low, count) - margin, _guess(high, count) + margin
        while True:
            first, stop = max(0, first), min(count, stop)
            if (first, stop) == (0, count):
                return self.read_all()
            rows = Rows(self._read(first, stop), self._ending.start, self.name)
            self._windowed += stop - first
            begins_before = first == 0 or rows.id(0) < low
            ends_after = stop == count or rows.id(-1) > high
            if begins_before and ends_after:
                return rows
            margin *= 4  # forged IDs may be anywhere; then all rows are read in the end
            first, stop = first - margin * (not begins_before), stop + margin * (not ends_after)


def _guess(snapshot: bytes, count: int) -> int:
    """Return the row of an ID in an archive of this many versions, about."""
    return int.from_bytes(snapshot[:8], "big") * count >> 64


class Archives:
    """The archives of a store. Safe for use from several threads.

    Versions are looked for in the archives that are known; if one is not there, the store is
    listed. A caller looks for a version's own object first, unless a known archive has the version:
    an object is deleted only after an archive with it is in listings. One lock guards all fields,
    and is held while rows are read; snapshot objects are read without it.

    Args:
        store: The store.
        expired: Its records of expired versions, for the errors about those that are gone.

    Attributes:
        damaged: Names of the archives of which no row can be read, with the reason.
    """

    def __init__(self, store: ObjectStore, expired: ExpiredStore) -> None:
        self._store = store
        self._expired = expired
        self._lock = threading.RLock()
        self._open: dict[str, _OpenArchive] = {}
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._gone = 0  # times that an archive turned out to be gone
        self.damaged: dict[str, CasweightsError] = {}

    def infos(self) -> Iterator[ObjectInfo]:
        """Return all archives; objects in their folder with other names are left out."""
        for info in self._store.list(names.ARCHIVES):
            with suppress(IntegrityError):
                parse_id(ArchiveId, names.ARCHIVES, info.name)
                yield info

    def refresh(self) -> None:
        """List the archives, read the rows of new ones, and forget those that are gone."""
        with self._lock:
            listed = {info.name: info for info in self.infos()}
            if not self._store.capabilities.listing_lags:  # else a read shows that one is gone
                self._open = {name: self._open[name] for name in self._open if name in listed}
            self.damaged = {name: why for name, why in self.damaged.items() if name in listed}
            known = self._open.keys() | self.damaged.keys()
            new = [info for name, info in listed.items() if name not in known]
            if not new:
                return
            # Threads of its own, because callers run on the database's workers.
            with Workers(_READERS) as workers:
                list(workers.map(self._try_open, new))

    def _try_open(self, info: ObjectInfo) -> None:
        try:
            self._open[info.name] = self._opened(info)
        except NotFoundError:  # merged since its listing
            self._gone += 1
        except IntegrityError as error:
            self.damaged[info.name] = error

    def _opened(self, info: ObjectInfo) -> _OpenArchive:
        try:
            return _OpenArchive(self._store, info)
        except IntegrityError:
            if not self._store.forget(info.name):
                raise
        return _OpenArchive(self._store, info)  # the damaged bytes came from a cache

    def known(self, snapshot: SnapshotId) -> list[Place]:
        """Return where the archives that are known hold a version. This lists nothing."""
        with self._lock:
            return self._between(snapshot, snapshot)

    def _between(self, low: bytes, high: bytes) -> list[Place]:
        found: list[Place] = []
        for archive in list(self._open.values()):
            with self._noting(archive):
                found += archive.between(low, high)
        return found

    def _read_all(self) -> None:
        """Read and check the rows of all archives."""
        for archive in list(self._open.values()):
            with self._noting(archive):
                archive.read_all()

    @contextmanager
    def _noting(self, archive: _OpenArchive) -> Iterator[None]:
        """Close an archive that turns out to be gone or damaged."""
        try:
            yield
        except NotFoundError:
            self._open.pop(archive.name, None)
            self._gone += 1
        except IntegrityError as error:
            self._open.pop(archive.name, None)
            self.damaged[archive.name] = error

    def locate(self, snapshots: Iterable[SnapshotId]) -> dict[SnapshotId, list[Place]]:
        """Return where archives hold these versions; versions in no archive are left out."""
        wanted = list(snapshots)
        with self._lock:
            return self._settled(lambda: self._locate(wanted))

    def _locate(self, wanted: Sequence[SnapshotId]) -> dict[SnapshotId, list[Place]]:
        found = self._known(wanted)
        # Damage to the rows of a large archive is only noticed when all of them are read.
        for look_closer in (self.refresh, self._read_all):
            if rest := [snapshot for snapshot in wanted if snapshot not in found]:
                look_closer()
                found |= self._known(rest)
        return found

    def _settled(self, look: Callable[[], T]) -> T:
        """Look again as long as archives turn out to be gone: their versions are in new ones."""
        for _ in range(_MAX_LOOKS - 1):
            before, found = self._gone, look()
            if self._gone == before:
                return found
        return look()

    def _known(self, snapshots: Iterable[SnapshotId]) -> dict[SnapshotId, list[Place]]:
        return {snapshot: places for snapshot in snapshots if (places := self.known(snapshot))}

    def ids(self, prefix: str = "") -> list[SnapshotId]:
        """Return the archived versions that begin with these hexadecimal digits.

        They are in the order in which `read` is fast: those of one archive by their place.
        """
        low, high = (bytes.fromhex(prefix.ljust(_HEX_DIGITS, digit)) for digit in "0f")
        with self._lock:
            places = self._settled(lambda: self._all_between(low, high))
        places.sort(key=lambda place: (place.archive, place.member.offset))
        return list(dict.fromkeys(place.member.snapshot for place in places))

    def present(self, snapshots: Iterable[SnapshotId]) -> set[SnapshotId]:
        """Return those of these versions that the store contains, in an archive or by itself."""
        wanted = list(snapshots)
        with self._lock:
            found = set(self._known(wanted))
        own = {names.snapshot_name(snapshot): snapshot for snapshot in wanted}
        unknown = [name for name, snapshot in own.items() if snapshot not in found]
        found.update(own[name] for name in (self._store.sizes(unknown) if unknown else ()))
        return found | self.locate(set(wanted) - found).keys()

    def stands(self, snapshot: SnapshotId) -> bool:
        """Return whether the store contains a version now; nothing remembered counts as proof."""
        if self._store.present([names.snapshot_name(snapshot)]):
            return True
        found = {place.archive for place in self.all_of(snapshot)}
        return bool(found and self._store.present(found))

    def load(
        self,
        snapshot: SnapshotId,
        own: Callable[[bool], T],
        parse: Callable[[bytes, str], T],
    ) -> T:
        """Return a version, from its own object or from an archive; damaged copies are passed over.

        Args:
            snapshot: The version.
            own: Reads and parses its own object, or, given True, that which was set aside.
            parse: Parses a snapshot object, given its bytes and its name for error messages.

        Raises:
            NotFoundError: The store does not contain the version.
            IntegrityError: All copies of it are damaged, or an archive that may contain it is.
        """
        damage: IntegrityError | None = None
        for read in self._copies(snapshot, own, parse):
            try:
                return read()
            except NotFoundError:
                continue
            except IntegrityError as error:
                damage = damage or error
        raise damage or self.missing(snapshot)

    def _copies(
        self, snapshot: SnapshotId, own: Callable[[bool], T], parse: Callable[[bytes, str], T]
    ) -> Iterator[Callable[[], T]]:
        """Yield functions that read the copies of a version, the likeliest first."""
        for place in self.known(snapshot):  # spares the look-up of an object that is gone
            yield partial(self._load_at, place, parse)
        yield partial(own, False)
        for _ in range(_MAX_LOOKS):
            places = self.all_of(snapshot)
            yield from (partial(self._load_at, place, parse) for place in places)
            if not places:
                break
        yield from self._copies_aside(snapshot, own, parse)

    def _copies_aside(
        self, snapshot: SnapshotId, own: Callable[[bool], T], parse: Callable[[bytes, str], T]
    ) -> Iterator[Callable[[], T]]:
        """Yield functions that read the copies of a version that collections have set aside."""
        aside = list_aside(self._store)
        if names.snapshot_name(snapshot) in aside:
            yield partial(own, True)
        for archive in self._open_aside(aside):
            places = archive.between(snapshot, snapshot)
            yield from (partial(self._load_at, place, parse) for place in places)

    def members_aside(self, aside: Mapping[str, ObjectInfo]) -> dict[str, list[SnapshotId]]:
        """Return the versions in each archive among objects that were set aside.

        Args:
            aside: The objects, by the names that they had.
        """
        return {archive.name: archive.members() for archive in self._open_aside(aside)}

    def _open_aside(self, aside: Mapping[str, ObjectInfo]) -> Iterator[_OpenArchive]:
        for name, info in aside.items():
            if name.startswith(names.ARCHIVES):
                with suppress(NotFoundError, IntegrityError):
                    yield self._opened(info)

    def members(self) -> dict[str, list[SnapshotId]]:
        """Return the versions in each archive, of which all rows are read and checked.

        Those come first that were merged most often: of several copies of a version, theirs name
        the newest packs.

        Raises:
            IntegrityError: An archive is damaged.
        """
        with self._lock:
            self.refresh()
            for error in self.damaged.values():
                raise error
            ordered = sorted(self._open.items(), key=lambda item: (-item[1].generation, item[0]))
            return {name: archive.members() for name, archive in ordered}

    def all_of(self, snapshot: SnapshotId) -> list[Place]:
        """Return where archives hold a version now, also those that were not known."""
        with self._lock:
            return self._settled(lambda: self._all_between(snapshot, snapshot))

    def _all_between(self, low: bytes, high: bytes) -> list[Place]:
        self.refresh()
        places = self._between(low, high)
        if not places:
            self._read_all()
            places = self._between(low, high)
        return places

    def load_from(self, archive: str, snapshot: SnapshotId, parse: Callable[[bytes, str], T]) -> T:
        """Return the copy of a version in one archive, which the last listing has shown."""
        for place in self.known(snapshot):
            if place.archive == archive:
                return self._load_at(place, parse)
        raise NotFoundError(ErrorCode.SNAPSHOT_NOT_FOUND, f"{archive} lost snapshot {snapshot}")

    def _load_at(self, place: Place, parse: Callable[[bytes, str], T]) -> T:
        """Return the copy of a version that an archive holds; raise the errors of `load`."""
        name = f"{names.snapshot_name(place.member.snapshot)} in {place.archive}"
        try:
            return parse(self.read(place), name)
        except IntegrityError:
            if not self.forget(place.archive):
                raise
        return parse(self.read(place), name)  # the damaged bytes came from a cache

    def missing(self, snapshot: SnapshotId) -> CasweightsError:
        """Return the error for a version that is in no place that can be read."""
        message = f"the store has no snapshot {snapshot}"
        for why in self.damaged.values():
            return IntegrityError(
                ErrorCode.CORRUPT_OBJECT, f"{message}, unless it is in an archive: {why.message}"
            )
        with suppress(CasweightsError):  # the error itself matters more
            if (row := self._expired.load().find(snapshot)) is not None:
                return removed(row)
        return NotFoundError(ErrorCode.SNAPSHOT_NOT_FOUND, message)

    def read(self, place: Place) -> bytes:
        """Return the snapshot object of a version, of which nothing is checked.

        Raises:
            NotFoundError: The archive is gone. Then it is forgotten: locate the version again.
        """
        name, (_, offset, size), end = place
        try:
            if self._store.capabilities.cheap_reads or size > _BLOCK:
                return self._store.get(name, offset, size)
            first, last = offset // _BLOCK, (offset + size - 1) // _BLOCK
            joined = b"".join(self._block(name, n, end) for n in range(first, last + 1))
        except NotFoundError:
            with self._lock:
                self._open.pop(name, None)
            raise
        return joined[offset - first * _BLOCK :][:size]

    def _block(self, name: str, number: int, end: int) -> bytes:
        """Return a part of an archive: neighbours are probably read next."""
        with self._lock:
            kept = self._blocks.get((name, number))
        if kept is None:
            start = number * _BLOCK
            kept = self._store.get(name, start, min(_BLOCK, end - start))
            with self._lock:
                self._blocks[name, number] = kept
                while len(self._blocks) > _BLOCKS:
                    self._blocks.popitem(last=False)
        return kept

    def forget(self, name: str) -> bool:
        """Drop copies of an archive's bytes; return whether another read may return others."""
        with self._lock:
            blocks = [key for key in self._blocks if key[0] == name]
            for key in blocks:
                del self._blocks[key]
        return self._store.forget(name) or bool(blocks)
