"""Reads the bytes around small frames together, where a read costs more than its bytes."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from casweights.config import KiB
from casweights.errors import IntegrityError, NotFoundError
from casweights.format import names
from casweights.stores.wrapper import WrapperStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.ids import PackId
    from casweights.stores.base import ObjectStore

_SMALL = 4 * KiB  # bytes of a frame that is read with its neighbours
_BLOCK = 32 * KiB  # read at once: the frames of a version lie together, also in merged packs
_MOST = 64  # blocks in memory


class NearbyStore(WrapperStore):
    """Keeps the blocks around small frames while callers read many chunks.

    The chains of the chunks of a version lead through the same few places. In a directory each read
    opens a file, which takes longer than a block.

    Args:
        inner: The store.
        size_of: Returns the number of bytes of a pack; 0 if it is not known.
    """

    def __init__(self, inner: ObjectStore, size_of: Callable[[PackId], int]) -> None:
        super().__init__(inner)
        self._size_of = size_of
        self._lock = threading.Lock()
        self._callers = 0
        self._blocks: dict[tuple[str, int], bytes] = {}

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep blocks in the ``with`` block, unless the store is behind a network."""
        if not self.inner.capabilities.cheap_reads:
            yield
            return
        with self._lock:
            self._callers += 1
        try:
            yield
        finally:
            with self._lock:
                self._callers -= 1
                if not self._callers:
                    self._blocks = {}

    def get(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        if self._callers and size is not None and size <= _SMALL:
            number, begin = divmod(start, _BLOCK)
            block = self._block(name, number) if begin + size <= _BLOCK else b""
            if begin + size <= len(block):
                return block[begin : begin + size]
        return self.inner.get(name, start, size)

    def _block(self, name: str, number: int) -> bytes:
        """Return a block of a pack; empty if the frame in it has to be read alone."""
        found = self._blocks.get((name, number))
        if found is None:
            start, end = number * _BLOCK, self._size_of(names.pack_of(name))
            found = b""
            if start < end:
                with suppress(IntegrityError, NotFoundError):  # other bytes than the frame's
                    found = self.inner.get(name, start, min(_BLOCK, end - start))
            if len(self._blocks) >= _MOST:
                self._blocks = {}
            self._blocks[name, number] = found
        return found

    def forget(self, name: str) -> bool:
        """Drop the blocks of a pack, and what the store keeps of it."""
        kept, left = self._blocks, {at: b for at, b in self._blocks.items() if at[0] != name}
        self._blocks = left
        return self.inner.forget(name) or len(left) < len(kept)
