"""The bytes of one file of a version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.database import Database
    from casweights.format.manifest import FileEntry


def read_file(db: Database, file: FileEntry) -> Iterator[memoryview]:
    """The bytes of one file, piece by piece."""
    if file.raw_header is not None:
        yield memoryview(file.raw_header)
    reader = db.reader.near()
    with reader.ahead() as announce:
        announce(file.chunks)
        for chunk, piece in file.pieces(db.config.chunk_size):
            view = uninitialized(piece.nbytes)  # the caller's to keep
            reader.readinto(chunk, view)
            yield view
