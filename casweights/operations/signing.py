"""Signatures of versions that are in the store: makes, copies and removes them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.config import MiB
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.operations.sampling import signature_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from casweights.database import Database
    from casweights.ids import SnapshotId

_MOST = 16  # signatures that one call makes: it reads a large part of each version
_SMALL = 1 * MiB  # of merged signatures, which are merged again


def sign(db: Database) -> int:
    """Make signatures of versions that may be bases and have none; return how many were made.

    These are the versions of tags, and the first ones of branches. At most 16 are made at once. A
    version that cannot be read is passed over.

    Raises:
        StoreError: The store could not be read or written.
    """
    there = db.signatures.versions()
    if not db.signatures.are_kept():
        return 0
    lacking = []
    with suppress(IntegrityError):  # a damaged move, which `verify` reports
        lacking = [version for version in db.refs.likely_bases() if version not in there]
    made = 0
    for version in lacking[:_MOST]:
        with suppress(IntegrityError, NotFoundError):
            signature = signature_of(db, db.snapshots.load(version, with_locations=True))
            if signature is not None:
                db.signatures.add([signature.entry(version)])
                made += 1
    db.signatures.merge(most=1, small=_SMALL)  # each object costs a search a request
    return made


def copy_signatures(source: Database, target: Database, versions: Collection[SnapshotId]) -> None:
    """Copy the signatures of versions to another store; a failure costs only these."""
    with suppress(CasweightsError):
        entries = source.signatures.entries(versions)
        if entries and target.signatures.are_kept():
            target.signatures.add(entries)


def drop_signatures(db: Database) -> None:
    """Remove the signatures of versions that are gone.

    Raises:
        StoreError: The store could not be read or written.
    """
    signed = db.signatures.versions()  # listed first: a signature is written after its version
    if signed:
        db.signatures.drop(signed.difference(db.snapshots.ids()))
