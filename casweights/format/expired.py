"""Records of expired versions: what a policy let go, when, and by which rules.

A record is a sorted table in columns, kept as it is stored, so that a reader needs little more
memory than the object has bytes, and finds a version by bisection.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from datetime import UTC, datetime, timedelta
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.hashing import blake3_256
from casweights.format.manifest import MAX_PARENTS
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import RecordId, SnapshotId
from casweights.results import ExpiredVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

MAX_RECORD = 32 << 20  # bytes of a record's object
MAX_RECORD_ROWS = 1 << 17  # versions of a record
MAX_POLICY_TEXT = 2000  # characters
_MAX_RUNS = 1 << 16  # times and policies of a record
_ID = 32  # bytes
_ROW_BYTES = 3 * _ID  # about: the ID, one parent, and numbers
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = range(-62_135_596_800_000_000, 253_402_300_800_000_000)  # microseconds: years 1 to 9999


class Run(NamedTuple):
    """What the versions have in common that expired together.

    Attributes:
        time: When, in microseconds since 1970-01-01 00:00 UTC.
        policy: The rules that did not keep them, for people.
    """

    time: int
    policy: str


class ExpiredRecord:
    """The rows of a record, in ascending order of their IDs. Immutable."""

    def __init__(
        self,
        ids: bytes,
        numbers: array[int],
        parents: bytes,
        parent_counts: bytes,
        run_of: array[int],
        runs: Sequence[Run],
    ) -> None:
        self._ids = ids
        self._numbers = numbers
        self._parents = parents
        self._ends = array("I", accumulate(parent_counts))
        self._run_of = run_of
        self._runs = runs

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[ExpiredVersion]:
        return map(self._row, range(len(self)))

    def find(self, snapshot: SnapshotId) -> ExpiredVersion | None:
        """Return the row of a version; None if it is not in this record."""
        at = self._position(snapshot)
        found = at < len(self) and self._id(at) == snapshot
        return self._row(at) if found else None

    def ids(self, start: bytes, end: bytes) -> Iterator[SnapshotId]:
        """Yield the IDs of versions from `start` up to, but not including, `end`."""
        for at in range(self._position(start), len(self)):
            if self._id(at) >= end:
                return
            yield SnapshotId(self._id(at))

    def _position(self, key: bytes) -> int:
        return bisect_left(range(len(self)), key, key=self._id)

    def _id(self, at: int) -> bytes:
        return self._ids[_ID * at : _ID * (at + 1)]

    def _row(self, at: int) -> ExpiredVersion:
        start, end = self._ends[at - 1] if at else 0, self._ends[at]
        run = self._runs[self._run_of[at]]
        return ExpiredVersion(
            id=SnapshotId(self._id(at)),
            number=self._numbers[at],
            parents=tuple(
                SnapshotId(self._parents[_ID * n : _ID * (n + 1)]) for n in range(start, end)
            ),
            time=_EPOCH + timedelta(microseconds=run.time),
            policy=run.policy,
        )


class EncodedRecord(NamedTuple):
    """A record, ready to be stored.

    Attributes:
        name: Name of its object.
        data: Content of its object.
        rows: Number of versions in it.
    """

    name: str
    data: bytes
    rows: int


def encode_records(versions: Iterable[ExpiredVersion]) -> Iterator[EncodedRecord]:
    """Yield records of these versions, each small enough for readers.

    Of several rows for one version, the earliest counts.
    """
    rows: dict[SnapshotId, ExpiredVersion] = {}
    for row in versions:
        known = rows.get(row.id)
        if known is None or (row.time, row.policy) < (known.time, known.policy):
            rows[row.id] = row
    part: list[ExpiredVersion] = []
    nbytes, runs = 0, set[tuple[datetime, str]]()
    for snapshot in sorted(rows):
        row = rows[snapshot]
        run = (row.time, row.policy)
        grows = _ROW_BYTES + _ID * len(row.parents)
        grows += 0 if run in runs else 16 + 4 * len(row.policy)
        is_full = len(part) == MAX_RECORD_ROWS or len(runs) == _MAX_RUNS - 1
        if part and (is_full or nbytes + grows > MAX_RECORD):
            yield _encode(part)
            part, nbytes, runs = [], 0, set()
        part.append(row)
        nbytes += grows
        runs.add(run)
    if part:
        yield _encode(part)


def _encode(rows: Sequence[ExpiredVersion]) -> EncodedRecord:
    """Encode a record of distinct versions, in ascending order of their IDs."""
    runs = dict.fromkeys(
        sorted(Run((row.time - _EPOCH) // timedelta(microseconds=1), row.policy) for row in rows)
    )
    number_of = {run: number for number, run in enumerate(runs)}
    fields = {
        "id": b"".join(row.id for row in rows),
        "number": [row.number for row in rows],
        "parents": b"".join(parent for row in rows for parent in row.parents),
        "parent_count": bytes(len(row.parents) for row in rows),
        "run": [
            number_of[Run((row.time - _EPOCH) // timedelta(microseconds=1), row.policy)]
            for row in rows
        ],
        "runs": [[run.time, run.policy] for run in runs],
    }
    data = seal(ObjectKind.EXPIRED, msgpack.packb(fields))
    return EncodedRecord(f"{names.EXPIRED}{RecordId(blake3_256(data))}", data, len(rows))


def parse_record_name(name: str) -> RecordId:
    """Return the ID in the name of a record.

    Raises:
        IntegrityError: `name` is not the name of a record.
    """
    try:
        found = RecordId.from_hex(name.removeprefix(names.EXPIRED))
    except ValueError:
        found = None
    if found is None or f"{names.EXPIRED}{found}" != name:
        raise corrupt(name, "its name is not that of a record of expired versions")
    return found


def decode_record(data: bytes, name: str) -> ExpiredRecord:
    """Parse the object of a record.

    Args:
        data: The object, of at most `MAX_RECORD` bytes.
        name: Its name in the store.

    Raises:
        IntegrityError: The object is damaged, or it has another ID.
        UnsupportedError: A newer casweights wrote it.
    """
    expected = parse_record_name(name)
    if len(data) > MAX_RECORD:
        raise corrupt(name, f"it has more than {MAX_RECORD} bytes")
    payload = unseal(ObjectKind.EXPIRED, data, name)
    if blake3_256(data) != expected:
        raise corrupt(name, "it has another ID")
    try:
        return _parse(payload)
    except MALFORMED as error:
        raise corrupt(name, f"it is not a record of expired versions: {error}") from error


def _parse(payload: bytes) -> ExpiredRecord:
    data = Unpacker(payload)
    readers: dict[str, Callable[[], Any]] = {
        "id": lambda: data.scalar(bytes),
        "number": lambda: array("Q", data.ints()),
        "parents": lambda: data.scalar(bytes),
        "parent_count": lambda: data.scalar(bytes),
        "run": lambda: array("I", data.ints()),
        "runs": lambda: [_run(data) for _ in data.items(_MAX_RUNS)],
    }
    fields = data.fields(readers)
    data.finish()
    _check(**{key: fields[key] for key in readers})
    counts = fields["parent_count"]
    return ExpiredRecord(
        fields["id"], fields["number"], fields["parents"], counts, fields["run"], fields["runs"]
    )


def _run(data: Unpacker) -> Run:
    data.row(2)
    run = Run(data.scalar(int), data.scalar(str))
    if run.time not in _TIMES or len(run.policy) > MAX_POLICY_TEXT:
        raise ValueError("a time is out of range, or the text of a policy is too long")
    return run


def _check(
    id: bytes,
    number: array[int],
    parents: bytes,
    parent_count: bytes,
    run: array[int],
    runs: Sequence[Run],
) -> None:
    """Check that the columns belong together."""
    rows = len(number)
    if not 1 <= rows <= MAX_RECORD_ROWS:
        raise ValueError(f"it has {rows} versions")
    if not len(id) == _ID * rows == _ID * len(parent_count) == _ID * len(run):
        raise ValueError("its columns have different lengths")
    if any(a >= b for a, b in pairwise(id[_ID * n : _ID * (n + 1)] for n in range(rows))):
        raise ValueError("its versions are not in order")
    if not all(1 <= n < 1 << 63 for n in number):
        raise ValueError("a number is out of range")
    if max(parent_count) > MAX_PARENTS or len(parents) != _ID * sum(parent_count):
        raise ValueError("its parents do not fit")
    if max(run) >= len(runs):
        raise ValueError("a version expired at no time that it lists")
