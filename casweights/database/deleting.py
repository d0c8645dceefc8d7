"""Deletes objects where the store allows that: a client may have the right to add objects only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.stores.base import ObjectStore


class DeletionRefusedError(StoreError):
    """The client may not delete objects of the store. Users see the error that it extends."""


def delete_replaced(store: ObjectStore, names: Sequence[str]) -> None:
    """Delete objects that nothing relies on any more.

    Raises:
        DeletionRefusedError: The client may not delete objects.
        StoreError: The store failed for another reason.
    """
    try:
        store.delete_all(names)
    except StoreError as error:
        if error.code is not ErrorCode.NO_PERMISSION:
            raise
        raise DeletionRefusedError(error.code, error.message) from error


def try_delete(store: ObjectStore, names: Sequence[str]) -> bool:
    """Delete objects as `delete_replaced` does, but return False if the store refuses that."""
    try:
        delete_replaced(store, names)
    except DeletionRefusedError:
        return False
    return True
