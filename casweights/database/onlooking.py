"""A store that is only looked at: whatever its user does, nothing in it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import ErrorCode, UnsupportedError
from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.stores.base import ObjectStore
    from casweights.system.buffers import Buffer


class OnlookingStore(WrapperStore):
    """Another store, without the right to change it.

    Args:
        inner: The store.
        keep: Whether to keep copies of objects on this machine, even if bytes of them are wrong:
            other bytes may be all that is left of an object.
    """

    def __init__(self, inner: ObjectStore, *, keep: bool) -> None:
        super().__init__(inner)
        self._keep = keep

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        raise self._refused(name)

    def delete(self, name: str) -> None:
        raise self._refused(name)

    def forget(self, name: str) -> bool:
        return not self._keep and self.inner.forget(name)

    def _refused(self, name: str) -> UnsupportedError:
        message = f"{name} stays as it is: {self.url} was opened to look at it"
        return UnsupportedError(ErrorCode.UNSUPPORTED, message)
