"""Signatures of versions that are in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.format.sampling import Samples
from casweights.format.signature import Signature
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from casweights.database import Database
    from casweights.format.manifest import Snapshot


def signature_of(db: Database, version: Snapshot) -> Signature:
    """Return the signature of a version, reading only the chunks in which samples lie.

    Args:
        db: The store.
        version: The version, loaded with locations.

    Raises:
        IntegrityError: One of these chunks is damaged or missing.
        StoreError: The store could not be read.
    """
    samples = Samples((file.path, file.size, file.header) for file in version.files)
    reader = db.reader.with_local(db.cache)
    for file in version.files:
        for chunk, piece in file.pieces(db.config.chunk_size):
            if samples.lacking(file.path, piece):
                content = scratch(piece.nbytes)
                reader.readinto(chunk, content)
                samples.add(file.path, piece, content)
    return Signature.of(samples)
