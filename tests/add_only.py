"""A store whose client may add objects and not delete them."""

from __future__ import annotations

from casweights.errors import ErrorCode, StoreError
from casweights.stores.base import ObjectStore
from casweights.stores.wrapper import WrapperStore


class AddOnly(WrapperStore):
    """A store whose client may add objects and not delete them.

    Attributes:
        refused: Number of deletions that were refused.
    """

    delete_all = ObjectStore.delete_all

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.refused = 0

    def delete(self, name: str) -> None:
        self.refused += 1
        raise StoreError(ErrorCode.NO_PERMISSION, f"cannot delete {name}")
