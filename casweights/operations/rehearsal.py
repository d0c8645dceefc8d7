"""A rehearsal: packs are made, and wait in a temporary file until it is known that they are wanted.

A repack cannot tell before how large its packs will be, and must not make a store larger.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.database.writer import PackWriter
from casweights.errors import ErrorCode, IntegrityError
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.names import pack_name
from casweights.format.pack import TRAILER_SIZE, SealedPack, build_index, index_span, parse_index
from casweights.operations.merging import are_sound
from casweights.system.buffers import uninitialized
from casweights.system.closing import Closing
from casweights.system.files import read_exactly, storage_errors, write_fully
from casweights.system.threads import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights.database import Database
    from casweights.ids import PackId
    from casweights.system.buffers import Buffer

_MAX_SHARE = 1 / 2  # of the free space where temporary files are


class _Kept(NamedTuple):
    """A pack in the temporary file."""

    pack: PackId
    offset: int
    size: int


class _TemporaryFile(Closing):
    """Bytes on disk, which are lost if there is no room for them.

    Attributes:
        is_complete: Whether nothing was lost.
    """

    def __init__(self) -> None:
        self.is_complete, self._left = False, 0
        with suppress(OSError):
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
            self._left = int(_MAX_SHARE * shutil.disk_usage(self._file.fileno()).free)
            self.is_complete = True

    def append(self, parts: Sequence[Buffer], size: int) -> None:
        """Append some bytes; if they do not fit, free all that was appended."""
        self._left -= size
        if self._left < 0:
            self.close()
        if self.is_complete:
            try:
                write_fully(self._file.fileno(), parts)
            except OSError:
                self.close()

    def read(self, offset: int, size: int) -> memoryview:
        """Return some of the bytes; shorter if the file is."""
        out = uninitialized(size)
        with storage_errors(f"cannot read a temporary file in {tempfile.gettempdir()}"):
            is_there = read_exactly(self._file.fileno(), offset, out)
        return out if is_there else out[:0]

    def close(self) -> None:
        """Free the bytes."""
        if self.is_complete:
            self.is_complete = False
            self._file.close()


class Rehearsal(PackWriter):
    """A writer whose packs are not written before `write`.

    They lie in a temporary file without a name, which takes at most half of the free space. Use it
    in a ``with`` block, at whose end the file goes.

    Args:
        database: The store.
        generation: Generation of the packs.
        before: Another generation, for `names_before`; None for none.

    Attributes:
        nbytes: The bytes of the packs.
        names_before: The names that they would have in that generation.
    """

    def __init__(self, database: Database, generation: int, before: int | None = None) -> None:
        super().__init__(database, generation)
        self._before = before
        self._lock = threading.Lock()
        self._file = _TemporaryFile()
        self._kept: list[_Kept] = []
        self.nbytes = 0
        self.names_before: set[str] = set()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Delete the temporary file."""
        self._file.close()

    @property
    def is_complete(self) -> bool:
        """Whether there was room for all packs, so that `write` can write them."""
        return self._file.is_complete

    def _put(self, pack: SealedPack) -> None:
        before = None
        if self._before is not None:
            before, _ = build_index(pack.frames, self._before)
        with self._lock:
            self.names.add(pack.name)
            if before is not None and not self._db.index.is_damaged(before):
                self.names_before.add(pack_name(before))
            self._kept.append(_Kept(pack.pack, self.nbytes, pack.size))
            self.nbytes += pack.size
            self._file.append(pack.parts, pack.size)

    def write(self, advanced: Callable[[int], None]) -> None:
        """Write all packs, which are durable when this returns.

        Args:
            advanced: Called with the bytes of each pack.

        Raises:
            IntegrityError: The temporary file was damaged.
            StoreError: The store could not be written.
        """
        puts = Background(self._db.store.capabilities.parallel_puts)
        try:
            for kept in self._kept:
                puts.submit(partial(super()._put, self._read(kept)))
                advanced(kept.size)
            puts.finish()
        finally:
            puts.close()

    def _read(self, kept: _Kept) -> SealedPack:
        """Read a pack, all of whose frames are checked again: what they replace will be deleted."""
        name, content = pack_name(kept.pack), self._file.read(kept.offset, kept.size)
        start, stop = index_span(bytes(content[-TRAILER_SIZE:]), kept.size, name)
        first, index = bytes(content[:PREFIX_SIZE]), bytes(content[start:stop])
        frames = parse_index(first, index, start, kept.pack, name)
        if not are_sound(content, frames):
            raise IntegrityError(
                ErrorCode.CORRUPT_OBJECT,
                f"{name} was made, and read back from a temporary file in {tempfile.gettempdir()}, "
                "where it is damaged: nothing was deleted. The disk of this machine may be faulty",
            )
        return SealedPack(kept.pack, frames, [content])
