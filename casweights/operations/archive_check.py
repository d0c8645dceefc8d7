"""Checks archives of versions for `verify`: every byte of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, IntegrityError, NotFoundError, UnsupportedError
from casweights.format import names
from casweights.format.archive import is_intact, parse_archive
from casweights.format.names import parse_id
from casweights.format.snapshot import decode_snapshot
from casweights.ids import ArchiveId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from casweights.database import Database
    from casweights.errors import CasweightsError
    from casweights.ids import ChunkId, SnapshotId
    from casweights.stores.base import ObjectInfo

_REPAIR = (
    "Copy each version of it that this store cannot read from a store that can, by "
    "`casweights push ID`; then `casweights repack` replaces the archive"
)
_REPLACE = (
    "Copy its versions from a store that has them, by `casweights push --all`; if nothing is "
    "missing here then, delete the archive"
)


def check_archives(db: Database, archives: Iterable[ObjectInfo]) -> Iterator[CasweightsError]:
    """Yield an error for each archive that is damaged in any byte; pass over those that are gone.

    Which versions are lost is for the caller to find out: others may hold them, too.
    """
    for info in archives:
        try:
            _check(db, parse_id(ArchiveId, names.ARCHIVES, info.name), info.name)
        except NotFoundError:  # merged since its listing
            continue
        except (IntegrityError, UnsupportedError) as error:
            yield error


def _check(db: Database, archive: ArchiveId, name: str) -> None:
    data = db.store.get(name)
    if not is_intact(data, archive) and db.store.forget(name):
        data = db.store.get(name)  # the damaged bytes came from a cache
    try:
        opened = parse_archive(data, name)
    except IntegrityError as error:
        raise _damaged(error.message, _REPLACE) from error
    if not is_intact(data, archive):
        raise _damaged(f"{name} is damaged: its content does not match its ID", _REPAIR)
    for snapshot, content in opened.snapshots.items():  # those that a forger wrote
        check_member(bytes(content), snapshot, name)


def check_member(content: bytes, snapshot: SnapshotId, name: str) -> None:
    """Check a snapshot object in an archive.

    Raises:
        IntegrityError: It is damaged, or is not this version, or carries frames.
        UnsupportedError: A newer casweights wrote it.
    """
    stored = decode_snapshot(content, snapshot, f"{snapshot} in {name}", read_nothing)
    if stored.frames:
        raise _damaged(f"{snapshot} in {name} is damaged: it carries frames", _REPAIR)


def read_nothing(*_: object) -> Mapping[ChunkId, bytes]:
    """Refuse to read structure chunks, for callers of `decode_snapshot` that need none."""
    raise NotImplementedError("no chunks are read here")


def _damaged(message: str, advice: str) -> IntegrityError:
    return IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{message}. {advice}")
