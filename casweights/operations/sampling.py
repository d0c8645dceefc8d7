"""Sample versions: while they are encoded, or from the store."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.errors import CasweightsError
from casweights.format.sampling import Samples
from casweights.format.signature import Signature
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.system.buffers import Pool

_EVERY = 64  # versions of a history, of which one has a signature; and the first of each branch


def is_sampled(number: int, *, begins: bool) -> bool:
    """Whether a version is to have a signature.

    Other versions are rarely bases of more than their own children, which name them.

    Args:
        number: Its number.
        begins: Whether it is the first version of its branch.
    """
    return begins or number == 1 or number % _EVERY == 0


class Sampling:
    """Takes samples of files while they are read, on several threads.

    Args:
        files: The files.
        buffers: Memory to read into.
    """

    def __init__(self, files: Sequence[SourceFile], buffers: Pool) -> None:
        self.samples = Samples((file.path, file.size, file.header) for file in files)
        self._buffers = buffers

    def take(
        self, file: SourceFile, pieces: Iterable[Piece], views: Mapping[int, memoryview]
    ) -> None:
        """Take the samples of some chunks of a file.

        Args:
            file: The file.
            pieces: The chunks' places.
            views: The bytes of those that were read, by offset in the file. Of the others, those
                with samples are read now. If that fails, there will be no signature.
        """
        for piece in pieces:
            view = views.get(piece.offset)
            if view is None and self.samples.wants(file.path, piece):
                with suppress(CasweightsError):
                    [view] = file.look([piece]) or file.read([piece], self._buffers)
            if view is not None:
                self.samples.add(file.path, piece, view)

    def signature(self) -> Signature | None:
        """Return the signature of the files; None if they are empty, or some were not sampled."""
        return Signature.of(self.samples)


def signature_of(db: Database, version: Snapshot) -> Signature | None:
    """Return the signature of a version in the store, reading only the chunks with samples.

    Args:
        db: The store.
        version: The version, loaded with locations.

    Returns:
        The signature; None if the version has no tensors, and no bytes.

    Raises:
        IntegrityError: One of these chunks is damaged or missing.
        StoreError: The store could not be read.
    """
    samples = Samples((file.path, file.size, file.header) for file in version.files)
    reader = db.reader.with_local(db.cache)
    for file in version.files:
        for chunk, piece in file.pieces(db.config.chunk_size):
            if samples.wants(file.path, piece):
                content = scratch(piece.nbytes)
                reader.readinto(chunk, content)
                samples.add(file.path, piece, content)
    return Signature.of(samples)
