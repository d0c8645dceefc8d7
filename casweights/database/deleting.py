"""Deletes objects where the store allows that: a client may have the right to add objects only."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, StoreError
from casweights.format.names import pack_name
from casweights.ids import PackId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.stores.base import ObjectStore


class DeletionRefusedError(StoreError):
    """The client may not delete objects of the store. Users see the error that it extends."""


def try_to_delete(store: ObjectStore) -> None:
    """Delete an object that does not exist, to find out whether the client may delete any.

    Raises:
        DeletionRefusedError: It may not.
    """
    _delete(store, [pack_name(PackId(secrets.token_bytes(32)))])


def may_delete(store: ObjectStore) -> bool:
    """Return whether the client may delete objects."""
    with suppress(DeletionRefusedError):
        try_to_delete(store)
        return True
    return False


def check_may_delete(store: ObjectStore, why: str) -> None:
    """Check that the client may delete objects, before anything is written.

    Args:
        store: The store.
        why: The reason why it has to, as a sentence without its end.

    Raises:
        StoreError: It may not.
    """
    if not may_delete(store):
        raise StoreError(
            ErrorCode.NO_PERMISSION,
            f"{store.url} does not let you delete objects. {why}: nothing was changed. Ask "
            "somebody who may delete objects to run it",
        )


def _delete(store: ObjectStore, names: Sequence[str]) -> None:
    try:
        store.delete_all(names)
    except StoreError as error:
        if error.code is not ErrorCode.NO_PERMISSION:
            raise
        raise DeletionRefusedError(error.code, error.message) from error


def try_delete(store: ObjectStore, names: Sequence[str]) -> bool:
    """Delete objects that nothing relies on any more; return False if the store refuses that."""
    try:
        _delete(store, names)
    except DeletionRefusedError:
        return False
    return True
