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
from casweights.database.signature_rows import JoinedRows
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
    NO_ROWS,
    Entry,
    ObjectName,
    check_content,
    decode_rows,
    encode_many,
    encode_one,
    parse_signatures_name,
    rows_size,
)
from casweights.ids import SnapshotId
from casweights.stores.base import check_size
from casweights.stores.optional import ahead

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping

    from casweights.database.signature_rows import Place
    from casweights.format.signature import Signature
    from casweights.format.signatures import EncodedSignatures, Rows
    from casweights.stores.base import ObjectInfo, ObjectStore
    from casweights.stores.optional import Range

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
        signature: Its signature, as a search has found it.
        key: Tells this signature from another one of the same version.
    """

    snapshot: SnapshotId
    signature: Signature
    key: bytes


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
        self._rows: dict[str, Rows] = {}  # by name of the object; none if it is damaged
        self._read: OrderedDict[bytes, Signature] = OrderedDict()  # by key
        self._distrusted: set[bytes] = set()  # keys
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
        known = self._load(self.listed(), None).objects
        return {SnapshotId(snapshot) for rows in known for snapshot in rows.snapshots}

    def entries(self, wanted: Collection[SnapshotId]) -> list[Entry]:
        """Return the signatures of these versions, of those that have one."""
        joined = self._load(self.listed(), None)
        found: dict[SnapshotId, Entry] = {}
        for snapshot in wanted:
            for place in joined.of(snapshot):
                with suppress(IntegrityError, NotFoundError):
                    entry = Entry(snapshot, place.row.coarse, self._content(place))
                    found.setdefault(snapshot, entry)
        return list(found.values())

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
        from casweights.database.coarse import join, rank  # numpy, for which other verbs wait

        listed = self.listed() if listed is None else listed
        with ahead(self._store) as fetch:
            fetch(self._small(listed))
            joined = self._load(listed, _MAX_OBJECTS)
            usable = [
                number
                for key, number in joined.numbers.items()
                if key not in self._distrusted
                and (within is None or key[: SnapshotId.sizes[0]] in within)
            ]
            usable.sort()
            table = join(joined.objects)[usable]
            ranked = rank(signature.features, table, _CONSIDERED * most)
            places = (joined[usable[n]] for n in ranked)
            found: list[Relative] = []
            budget = _Budget(_MAX_READ, self._read)
            # Those whose signatures are damaged or forged do not count, and others follow.
            while len(found) < most and (chosen := budget.take(places, most - len(found))):
                fetch([[place.span] for place in chosen])
                found += filter(None, map(self._signature, chosen))
        return list(_few_equal(found))

    def _small(self, listed: dict[str, ObjectInfo]) -> list[list[Range]]:
        """Return objects whose rows are not known, to fetch whole: rows and signatures at once."""
        sizes = {name: info.size for name, info in listed.items() if name not in self._rows}
        small = _affordable(sorted(sizes, key=sizes.__getitem__), sizes, _MAX_READ)
        return [[(name, 0, sizes[name])] for name in small]

    def find(self, snapshot: SnapshotId) -> Signature | None:
        """Return the signature of a version; None if it has none that is sound."""
        return self.of([snapshot]).get(snapshot)

    def of(self, wanted: Iterable[SnapshotId]) -> dict[SnapshotId, Signature]:
        """Return the signatures of these versions, of those that have one that is sound.

        Raises:
            StoreError: The store could not be read.
        """
        joined = self._load(self.listed(), None)
        found = ((one, map(self._signature, joined.of(one))) for one in wanted)
        first = ((one, next(filter(None, relatives), None)) for one, relatives in found)
        return {one: relative.signature for one, relative in first if relative is not None}

    def distrust(self, key: bytes) -> None:
        """Leave a signature out of later searches, because it turned out to be wrong."""
        self._distrusted.add(key)

    def tidy(self) -> None:
        """Merge, if the last search has met many objects; a failure is left to the next writer."""
        if self._is_untidy and self._may_delete:
            with suppress(CasweightsError):
                self.merge()

    def merge(self, most: int = MAX_LOOSE, small: int = 0) -> int:
        """Merge the objects of single versions if there are many; return how many were replaced.

        With them go objects of several versions that are small, or not much larger, so that a store
        has few.

        The new object exists before others are deleted. Two clients that merge at the same moment
        make two objects with the same signatures, which the next merge makes one.

        Args:
            most: How many objects of single versions are not many.
            small: Bytes of an object that is small.
        """
        listed = self.listed()
        named = _named(listed)
        self._load({name: listed[name] for name in named if not _is_loose(named[name])}, None)
        merged = {
            snapshot
            for name in named
            for snapshot in self._rows.get(name, NO_ROWS).snapshots
            if not _is_loose(named[name])
        }
        loose = [name for name, said in named.items() if _is_loose(said)]
        if sum(named[name].snapshot not in merged for name in loose) <= most:
            return 0
        if not self._may_delete:
            loose = [name for name in loose if named[name].snapshot not in merged]
        several = [name for name, said in named.items() if not _is_loose(said)]
        replaced: dict[str, int] = {}
        total = nbytes = 0
        for name in (*loose, *sorted(several, key=lambda name: named[name].versions)):
            said, size = named[name], listed[name].size
            fits = total + said.versions <= MAX_VERSIONS and nbytes + size <= MAX_OBJECT
            is_small = said.versions < _GROWTH * total or size <= small
            if fits and (_is_loose(said) or is_small):
                replaced[name] = size
                total, nbytes = total + said.versions, nbytes + size
        return self._rewrite(replaced)

    def drop(self, gone: Collection[SnapshotId]) -> None:
        """Delete the signatures of versions that are gone, if the store allows that."""
        listed = self.listed()
        self._load(listed, None)
        doomed, smaller = [], []
        for name, said in _named(listed).items():
            dead = sum(one in gone for one in self._rows.get(name, NO_ROWS).snapshots)
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

    def _load(self, listed: dict[str, ObjectInfo], most: int | None) -> JoinedRows:
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
        return JoinedRows({name: self._rows[name] for name in listed if name in self._rows})

    def _read_rows(self, name: str, said: ObjectName) -> Rows:
        try:
            return decode_rows(self._store.get(name, 0, rows_size(said.versions)), name)
        except (IntegrityError, NotFoundError, UnsupportedError):
            self._store.forget(name)
            return NO_ROWS

    def _signature(self, place: Place) -> Relative | None:
        """Return a signature; None if it is damaged, gone, or has another coarse row."""
        from casweights.format.features import coarse_row
        from casweights.format.signature import decode_signature

        snapshot, key = place.row.snapshot, place.key
        if (known := self._read.get(key)) is not None:
            return Relative(snapshot, known, key)
        try:
            found = decode_signature(self._content(place), place.row, place.name)
        except (IntegrityError, NotFoundError):
            self._store.forget(place.name)
            return None
        if coarse_row(found.features) != place.row.coarse:  # nobody honest wrote this
            self.distrust(key)
            return None
        with self._lock:
            self._read[key] = found
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        return Relative(snapshot, found, key)

    def _content(self, place: Place) -> bytes:
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


class _Budget:
    """Limits the bytes of signatures that a search reads.

    Args:
        nbytes: The limit.
        known: Those that are in memory, by key.
    """

    def __init__(self, nbytes: int, known: Container[bytes]) -> None:
        self._left = nbytes
        self._known = known

    def take(self, places: Iterator[Place], most: int) -> list[Place]:
        """Take the next few places whose signatures are within the limit."""
        found: list[Place] = []
        while len(found) < most and (place := next(places, None)) is not None:
            cost = 0 if place.key in self._known else place.row.size
            if cost <= self._left:
                found.append(place)
                self._left -= cost
        return found


def _few_equal(found: Iterable[Relative]) -> Iterator[Relative]:
    """Yield versions, of those with equal signatures a few: they differ in few elements."""
    seen: Counter[Signature] = Counter()
    for relative in found:
        seen[relative.signature] += 1
        if seen[relative.signature] <= _MOST_EQUAL:
            yield relative
