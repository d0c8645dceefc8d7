"""Losses: records in a store of what it has lost of its versions.

`repair` writes them for what no source had, and withdraws them when a version is complete again. A
record is a note: nothing is deleted because of it, and readers need not know it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.lost import MAX_LOSS, decode_loss, encode_loss, loss_name, parse_loss_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.format.lost import Loss
    from casweights.ids import SnapshotId
    from casweights.stores.base import ObjectStore


_ASIDE = tuple(names.LOST + folder for folder in (names.PACKS, names.SNAPSHOTS, names.ARCHIVES))


class Losses:
    """The records of lost versions in one store.

    Args:
        store: The store.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def names(self) -> dict[SnapshotId, list[str]]:
        """Return the names of the records of each version; those with other names are left out.

        Raises:
            StoreError: The store could not be read.
        """
        found: dict[SnapshotId, list[str]] = {}
        for info in self._store.list(names.LOST):
            with suppress(IntegrityError):
                found.setdefault(parse_loss_name(info.name), []).append(info.name)
        return found

    def load(self, snapshot: SnapshotId) -> list[Loss]:
        """Return the sound records of a version."""
        found: list[Loss] = []
        for name in self.names().get(snapshot, []):
            with suppress(NotFoundError, IntegrityError):
                found.append(decode_loss(self._store.read(name, MAX_LOSS), name))
        return found

    def record(self, loss: Loss) -> str:
        """Record what is lost of a version, in place of earlier records; return the record's name.

        Raises:
            StoreError: The store could not be written.
        """
        name = loss_name(loss)
        earlier = self.names().get(loss.snapshot, [])
        if name not in earlier:
            self._store.put(name, [encode_loss(loss)])
        self._delete([other for other in earlier if other != name])
        return name

    def withdraw(self, complete: Iterable[SnapshotId]) -> None:
        """Remove the records of versions that are complete, if the store lets them be removed."""
        known = self.names()
        self._delete([name for version in complete for name in known.get(version, [])])

    def _delete(self, doomed: list[str]) -> None:
        with suppress(CasweightsError):  # an earlier record names more than is lost: no harm
            self._store.delete_all(doomed)

    def problems(self) -> Iterator[CasweightsError]:
        """Yield an error for each record that is itself damaged or misnamed."""
        for info in self._store.list(names.LOST):
            if info.name.startswith(_ASIDE):
                continue
            try:
                decode_loss(self._store.read(info.name, MAX_LOSS), info.name)
            except NotFoundError:  # withdrawn after the listing
                continue
            except CasweightsError as error:
                yield error
