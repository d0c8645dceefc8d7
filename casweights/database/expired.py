"""The records of expired versions of a store: reads, writes and merges them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from casweights.database.deleting import try_delete
from casweights.database.listing import find_listed, looks
from casweights.errors import ErrorCode, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.expired import (
    MAX_RECORD,
    MAX_RECORD_ROWS,
    ExpiredRecord,
    decode_record,
    encode_records,
    parse_record_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casweights.errors import CasweightsError
    from casweights.format.expired import EncodedRecord
    from casweights.ids import SnapshotId
    from casweights.results import ExpiredVersion
    from casweights.stores.base import ObjectStore

_FAN_IN = 8  # records of one size that become one
_FULL = MAX_RECORD_ROWS // 2  # versions of a record that is not merged again


class ExpiredVersions:
    """Rows of records: which versions expired, with what is left of each. Immutable.

    A row alone does not make a version expired: one that a branch or tag names has not.
    """

    def __init__(self, records: Sequence[ExpiredRecord]) -> None:
        self._records = records

    def __bool__(self) -> bool:
        return bool(self._records)

    def __iter__(self) -> Iterator[ExpiredVersion]:
        for record in self._records:
            yield from record

    def find(self, snapshot: SnapshotId) -> ExpiredVersion | None:
        """Return the row of a version, of several the earliest; None if it has none."""
        found = [row for record in self._records if (row := record.find(snapshot)) is not None]
        return min(found, key=lambda row: (row.time, row.policy), default=None)

    def beginning_with(self, digits: str) -> set[SnapshotId]:
        """Return the versions whose IDs begin with these hexadecimal digits."""
        start, end = bytes.fromhex(f"{digits:0<64}"), bytes.fromhex(f"{digits:f<64}")
        end += b"\xff"  # above the last ID of these digits
        return {found for record in self._records for found in record.ids(start, end)}


class ExpiredStore:
    """Reads and writes the records of expired versions.

    Records are listed by each `load`, and each is read once. Damaged ones are passed over: their
    versions then count as not expired, and `verify` reports them.

    Args:
        store: The store.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._read: dict[str, ExpiredRecord | None] = {}  # by name; None if it is damaged

    def load(self) -> ExpiredVersions:
        """Return what the store records now.

        Raises:
            UnsupportedError: A newer casweights wrote one of the records.
            StoreError: The store could not be read.
        """
        return ExpiredVersions([record for record in self._records().values() if record])

    def add(self, versions: Iterable[ExpiredVersion]) -> None:
        """Record that versions expired. They are recorded for good once this returns."""
        records = list(encode_records(versions))
        if records:
            self._store.put_all([(record.name, [record.data]) for record in records])

    def merge(self) -> int:
        """Merge small records by eights; return how many were deleted.

        A record is deleted only after a listing shows one with all of its rows and more, or with
        the same rows and a higher ID, that this client has just read back. So of the records with
        a row, one that no other exceeds always stays, whatever other clients do.
        """
        records = {name: record for name, record in self._records().items() if record}
        deleted = 0
        for group in _groups(records):
            deleted += self._merge({name: records[name] for name in group})
        return deleted

    def problems(self) -> Iterator[CasweightsError]:
        """Yield an error for each record that is damaged or misnamed."""
        for info in self._store.list(names.EXPIRED):
            try:
                self._decode(info.name)
            except NotFoundError:  # merged since
                continue
            except IntegrityError as error:
                yield error

    def _merge(self, group: Mapping[str, ExpiredRecord]) -> int:
        """Write one record with the rows of several, and delete these."""
        merged = list(encode_records(row for record in group.values() for row in record))
        if len(merged) != 1:
            return 0
        [new] = merged
        self._store.put(new.name, [new.data])
        doomed = [name for name, record in group.items() if _exceeds(new, name, len(record))]
        if not doomed or not self._is_sound(new):
            return 0
        return len(doomed) if try_delete(self._store, doomed) else 0

    def _is_sound(self, record: EncodedRecord) -> bool:
        """Whether a record that was put is there, intact and listed."""
        self._store.forget(record.name)
        try:
            if self._store.read(record.name, MAX_RECORD) != record.data:
                return False
        except NotFoundError:  # another client has merged it
            return False
        return find_listed(self._store, record.name) is not None

    def _records(self) -> dict[str, ExpiredRecord | None]:
        """Return all records by name, from a listing all of whose objects could be read."""
        for listed in looks(lambda: [info.name for info in self._store.list(names.EXPIRED)]):
            try:
                self._read = {name: self._read_once(name) for name in listed}
            except NotFoundError as error:  # merged since its listing
                gone = error
            else:
                return self._read
        raise gone

    def _read_once(self, name: str) -> ExpiredRecord | None:
        if name in self._read:
            return self._read[name]
        try:
            return self._decode(name)
        except IntegrityError:
            return None

    def _decode(self, name: str) -> ExpiredRecord:
        parse_record_name(name)
        try:
            return decode_record(self._store.read(name, MAX_RECORD), name)
        except IntegrityError:
            if not self._store.forget(name):
                raise
        return decode_record(self._store.read(name, MAX_RECORD), name)  # a cache was damaged


def removed(row: ExpiredVersion) -> NotFoundError:
    """Return the error for a version that expired, and that is not in the store."""
    return NotFoundError(
        ErrorCode.EXPIRED,
        f"version {row.id} (number {row.number}) expired on {row.time:%Y-%m-%d %H:%M} UTC "
        f"({row.policy}), and the store does not contain it",
    )


def _groups(records: Mapping[str, ExpiredRecord]) -> Iterator[list[str]]:
    """Yield the names of records to merge: eight or more of one size."""
    levels: defaultdict[int, list[str]] = defaultdict(list)
    for name, record in sorted(records.items()):
        if len(record) <= _FULL:
            levels[(len(record).bit_length() - 1) // 3].append(name)
    for _, group in sorted(levels.items()):
        if len(group) >= _FAN_IN:
            yield group[:_FAN_IN]


def _exceeds(new: EncodedRecord, name: str, rows: int) -> bool:
    """Whether a record that has all rows of another one may replace it."""
    return (new.rows, new.name) > (rows, name)
