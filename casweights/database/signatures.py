"""The signatures of a store's versions: reads, writes, merges and searches them.

All of them are hints. Whatever is lost, stale or forged there costs a search some bytes, and never
makes it fail.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from casweights.config import MiB
from casweights.database.deleting import try_delete
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
)
from casweights.format import names
from casweights.format.signatures import (
    MAX_OBJECT,
    MAX_VERSIONS,
    Entry,
    ObjectName,
    Row,
    check_content,
    decode_rows,
    encode_many,
    encode_one,
    parse_signatures_name,
    rows_size,
)
from casweights.stores.base import check_size
from casweights.stores.optional import ahead

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence

    from casweights.format.signature import Signature
    from casweights.format.signatures import EncodedSignatures
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectInfo, ObjectStore

MAX_LOOSE = 64  # objects of single versions that a store may have before they are merged
_GROWTH = 4  # an object is merged if it has less than this many times the others' versions
_MAX_OBJECTS = 256  # whose rows one search reads; it remembers them, and the next reads others
_MAX_SEARCH_ROWS = 4 * MiB  # bytes of rows that one search reads
_MAX_ROWS = 64 * MiB  # bytes of rows that anything else reads
_MAX_READ = 1 * MiB  # bytes of signatures that one search reads
_CONSIDERED = 4  # times as many versions as are wanted: some signatures are large, or damaged
_MOST_EQUAL = 4  # versions with equal signatures that one search returns
_KEPT = 256  # signatures that stay in memory
_GONE_SHARE = 1 / 4  # of the versions of an object: that many are gone before it is written again


class Relative(NamedTuple):
    """A version that may be a relative of another one.

    Attributes:
        snapshot: The version.
        signature: Its signature.
    """

    snapshot: SnapshotId
    signature: Signature


class _Place(NamedTuple):
    """Where a signature lies: an object, and a row of it."""

    name: str
    row: Row


class SignatureStore:
    """Reads, writes and searches signatures. Safe for use from several threads.

    Each search lists the signatures. The rows of an object are read once, since objects never
    change.

    Args:
        store: The store.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._rows: dict[str, Sequence[Row]] = {}  # by name of the object; none if it is damaged
        self._read: OrderedDict[tuple[SnapshotId, bytes], Signature] = OrderedDict()
        self._distrusted: set[SnapshotId] = set()
        self._is_off: bool | None = None
        self._may_delete = True  # until the store refuses a deletion
        self._is_untidy = False  # whether the last listing showed many objects of single versions

    def are_kept(self) -> bool:
        """Whether writers are to add signatures; looked up once."""
        if self._is_off is None:
            self._is_off = self._store.exists(names.NO_SIGNATURES)
        return not self._is_off

    def keep(self, wanted: bool) -> None:
        """Let writers add signatures from now on, or delete all and let nobody add any."""
        if wanted:
            self._store.delete(names.NO_SIGNATURES)
        else:
            self._store.put(names.NO_SIGNATURES, [b"no signatures\n"])
            doomed = [info.name for info in self._store.list(names.SIGNATURES)]
            self._store.delete_all([name for name in doomed if name != names.NO_SIGNATURES])
        self._is_off = not wanted

    def encode(self, snapshot: SnapshotId, signature: Signature) -> EncodedSignatures:
        """Return the object with the signature of a version, which the caller puts."""
        return encode_one(signature.entry(snapshot))

    def add(self, entries: Iterable[Entry]) -> None:
        """Put the signatures of versions, each as an object of its own."""
        objects = [encode_one(entry) for entry in entries]
        if objects:
            self._store.put_all([(found.name, found.parts) for found in objects])

    def versions(self) -> set[SnapshotId]:
        """Return the versions that have a signature."""
        return {row.snapshot for rows in self._load(self.listed(), None) for row in rows}

    def entries(self, wanted: Collection[SnapshotId]) -> list[Entry]:
        """Return the signatures of these versions, of those that have one."""
        listed = self.listed()
        self._load(listed, None)
        places = self._places(listed)
        found = []
        for snapshot in wanted:
            if (place := places.get(snapshot)) is not None:
                with suppress(IntegrityError, NotFoundError):
                    content = self._content(place)
                    found.append(Entry(snapshot, place.row.coarse, content))
        return found

    def nearest(
        self,
        signature: Signature,
        *,
        within: Container[SnapshotId] | None = None,
        most: int = 64,
        listed: dict[str, ObjectInfo] | None = None,
    ) -> list[Relative]:
        """Return versions that may be relatives of another one, the most likely one first.

        Args:
            signature: That of the other version.
            within: The versions to choose from; None for all.
            most: The number of versions to return at most.
            listed: What `listed` has returned just before; None to list again.

        Raises:
            StoreError: The store could not be read.
        """
        from casweights.database.coarse import rank  # it needs numpy, for which other verbs wait

        listed = self.listed() if listed is None else listed
        self._load(listed, _MAX_OBJECTS)
        places = [
            place
            for snapshot, place in self._places(listed).items()
            if snapshot not in self._distrusted and (within is None or snapshot in within)
        ]
        coarse = [place.row.coarse for place in places]
        ranked = rank(signature.features, coarse, _CONSIDERED * most)
        chosen: list[_Place] = []
        left = _MAX_READ
        for place in (places[n] for n in ranked):
            if len(chosen) == most:
                break
            known = (place.row.snapshot, place.row.check) in self._read
            if known or place.row.size <= left:
                chosen.append(place)
                left -= 0 if known else place.row.size
        with ahead(self._store) as fetch:
            fetch([[_span(place)] for place in chosen])
            found = [self._signature(place) for place in chosen]
        return list(_few_equal(relative for relative in found if relative is not None))

    def find(self, snapshot: SnapshotId) -> Signature | None:
        """Return the signature of a version; None if it has none that is sound.

        Raises:
            StoreError: The store could not be read.
        """
        listed = self.listed()
        self._load(listed, None)
        place = self._places(listed).get(snapshot)
        found = None if place is None else self._signature(place)
        return None if found is None else found.signature

    def distrust(self, snapshot: SnapshotId) -> None:
        """Leave a version out of later searches, because its signature turned out to be wrong."""
        self._distrusted.add(snapshot)

    def tidy(self) -> None:
        """Merge, if the last search has met many objects; a failure is left to the next writer."""
        if self._is_untidy and self._may_delete:
            with suppress(CasweightsError):
                self.merge()

    def merge(self) -> int:
        """Merge the objects of single versions if there are many; return how many were replaced.

        With them go objects of several versions that are not much larger, so that a store has few.
        The new object exists before others are deleted. Two clients that merge at the same moment
        make two objects with the same signatures, which the next merge makes one.
        """
        listed = self.listed()
        named = _named(listed)
        self._load({name: listed[name] for name in named if not _is_loose(named[name])}, None)
        merged = {
            row.snapshot
            for name in named
            for row in self._rows.get(name, ())
            if not _is_loose(named[name])
        }
        loose = [name for name, said in named.items() if _is_loose(said)]
        if sum(named[name].snapshot not in merged for name in loose) <= MAX_LOOSE:
            return 0
        if not self._may_delete:
            loose = [name for name in loose if named[name].snapshot not in merged]
        several = [name for name, said in named.items() if not _is_loose(said)]
        replaced: dict[str, int] = {}
        total = nbytes = 0
        for name in (*loose, *sorted(several, key=lambda name: named[name].versions)):
            said, size = named[name], listed[name].size
            fits = total + said.versions <= MAX_VERSIONS and nbytes + size <= MAX_OBJECT
            if fits and (_is_loose(said) or said.versions < _GROWTH * total):
                replaced[name] = size
                total, nbytes = total + said.versions, nbytes + size
        return self._rewrite(replaced)

    def drop(self, gone: Collection[SnapshotId]) -> None:
        """Delete the signatures of versions that are gone, if the store allows that."""
        listed = self.listed()
        self._load(listed, None)
        doomed, smaller = [], []
        for name, said in _named(listed).items():
            rows = self._rows.get(name, ())
            dead = sum(row.snapshot in gone for row in rows)
            if dead and dead == said.versions:
                doomed.append(name)
            elif dead > _GONE_SHARE * said.versions:
                smaller.append(name)
        for name in smaller:
            self._rewrite({name: listed[name].size}, without=gone)
        if doomed:
            try_delete(self._store, doomed)

    def problems(self) -> Iterator[CasweightsError]:
        """Yield an error for each object of signatures that is damaged or misnamed."""
        for info in self._store.list(names.SIGNATURES):
            if info.name == names.NO_SIGNATURES:
                continue
            try:
                self._check(info)
            except NotFoundError:  # merged since
                continue
            except CasweightsError as error:
                yield error

    def _check(self, info: ObjectInfo) -> None:
        from casweights.format.signature import decode_signature

        said = parse_signatures_name(info.name)
        data = self._store.read(info.name, MAX_OBJECT)
        rows = decode_rows(data[: rows_size(said.versions)], info.name)
        for row in rows:
            decode_signature(data[row.offset : row.offset + row.size], row, info.name)
        if len(data) != rows[-1].offset + rows[-1].size:
            raise IntegrityError(
                ErrorCode.CORRUPT_OBJECT, f"{info.name} is damaged: bytes follow its end"
            )

    def listed(self) -> dict[str, ObjectInfo]:
        """List the objects of signatures, none if nobody is to add any; forget what is gone.

        Raises:
            StoreError: The store could not be read.
        """
        listed = {info.name: info for info in self._store.list(names.SIGNATURES)}
        with self._lock:
            self._is_off = listed.pop(names.NO_SIGNATURES, None) is not None
            self._rows = {name: rows for name, rows in self._rows.items() if name in listed}
            self._is_untidy = sum(map(_is_loose, _named(listed).values())) > MAX_LOOSE
        return {} if self._is_off else listed

    def _load(self, listed: dict[str, ObjectInfo], most: int | None) -> list[Sequence[Row]]:
        """Read the rows of objects that are not known; return all rows.

        Args:
            listed: The objects.
            most: The number of objects to read at most; None for all.
        """
        named = {
            name: said
            for name, said in _named(listed).items()
            if name not in self._rows and listed[name].size >= rows_size(said.versions)
        }
        # Objects of many versions first: they say most about the store.
        new = sorted(named, key=lambda name: (-named[name].versions, name))[:most]
        limit = _MAX_ROWS if most is None else _MAX_SEARCH_ROWS
        new = list(_affordable(new, {name: rows_size(named[name].versions) for name in new}, limit))
        with ahead(self._store) as fetch:
            fetch([[(name, 0, rows_size(named[name].versions))] for name in new])
            for name in new:
                rows = self._read_rows(name, named[name])
                with self._lock:
                    self._rows[name] = rows
        return [self._rows[name] for name in listed if name in self._rows]

    def _read_rows(self, name: str, said: ObjectName) -> Sequence[Row]:
        try:
            return decode_rows(self._store.get(name, 0, rows_size(said.versions)), name)
        except (IntegrityError, NotFoundError, UnsupportedError):
            self._store.forget(name)
            return ()

    def _places(self, listed: Iterable[str]) -> dict[SnapshotId, _Place]:
        """Return where the signature of each version is; of several, the first by name."""
        found: dict[SnapshotId, _Place] = {}
        for name in sorted(listed):
            for row in self._rows.get(name, ()):
                found.setdefault(row.snapshot, _Place(name, row))
        return found

    def _signature(self, place: _Place) -> Relative | None:
        """Return a signature; None if it is damaged, gone, or has another coarse row."""
        from casweights.format.features import coarse_row
        from casweights.format.signature import decode_signature

        snapshot, key = place.row.snapshot, (place.row.snapshot, place.row.check)
        if (known := self._read.get(key)) is not None:
            return Relative(snapshot, known)
        try:
            found = decode_signature(self._content(place), place.row, place.name)
        except (IntegrityError, NotFoundError):
            self._store.forget(place.name)
            return None
        if coarse_row(found.features) != place.row.coarse:  # nobody honest wrote this
            self.distrust(snapshot)
            return None
        with self._lock:
            self._read[key] = found
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        return Relative(snapshot, found)

    def _content(self, place: _Place) -> bytes:
        data = self._store.get(place.name, place.row.offset, place.row.size)
        return check_content(data, place.row, place.name)

    def _rewrite(self, replaced: Mapping[str, int], without: Collection[SnapshotId] = ()) -> int:
        """Write one object with the signatures of several, and delete these.

        Args:
            replaced: The objects, with their sizes.
            without: Versions to leave out.
        """
        entries: list[Entry] = []
        doomed: list[str] = []
        with ahead(self._store) as fetch:
            fetch([[(name, 0, size)] for name, size in replaced.items()])
            for name, size in replaced.items():
                with suppress(NotFoundError, UnsupportedError):  # that of a newer casweights stays
                    with suppress(IntegrityError):
                        entries += self._entries_in(name, size)
                    doomed.append(name)
        kept = [entry for entry in entries if entry.snapshot not in without]
        if kept:
            new = encode_many(kept)
            self._store.put(new.name, new.parts)
            doomed = [name for name in doomed if name != new.name]
        self._may_delete = try_delete(self._store, doomed)
        return len(doomed)

    def _entries_in(self, name: str, size: int) -> list[Entry]:
        """Return all signatures in an object, without those that are damaged."""
        said = parse_signatures_name(name)
        data = self._store.get(name, 0, check_size(name, size, MAX_OBJECT))
        found = []
        for row in decode_rows(data[: rows_size(said.versions)], name):
            with suppress(IntegrityError):
                content = check_content(data[row.offset : row.offset + row.size], row, name)
                found.append(Entry(row.snapshot, row.coarse, content))
        return found


def _named(listed: Iterable[str]) -> dict[str, ObjectName]:
    """Return what the names of objects say; other names are left out."""
    found: dict[str, ObjectName] = {}
    for name in listed:
        with suppress(IntegrityError):
            found[name] = parse_signatures_name(name)
    return found


def _is_loose(said: ObjectName) -> bool:
    return said.snapshot is not None


def _affordable(new: Iterable[str], sizes: Mapping[str, int], limit: int) -> Iterator[str]:
    """Yield objects while their rows have together at most `limit` bytes."""
    for name in new:
        limit -= sizes[name]
        if limit < 0:
            return
        yield name


def _span(place: _Place) -> tuple[str, int, int]:
    return place.name, place.row.offset, place.row.offset + place.row.size


def _few_equal(found: Iterable[Relative]) -> Iterator[Relative]:
    """Yield versions, of those with equal signatures a few: they differ in few elements."""
    seen: Counter[Signature] = Counter()
    for relative in found:
        seen[relative.signature] += 1
        if seen[relative.signature] <= _MOST_EQUAL:
            yield relative
