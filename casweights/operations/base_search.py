"""Find the bases of files that are committed: chunks of the parent, and of relatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import IntegrityError
from casweights.format.signature import Signature
from casweights.operations.base_chunks import BaseChunks
from casweights.operations.bases import Bases
from casweights.operations.candidates import New
from casweights.operations.relatives import relatives
from casweights.operations.rows import affordable, find_rows
from casweights.operations.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.system.buffers import Pool

_MIN_LACKING = 1 << 18  # bytes without a base that are worth a search


def find_bases(
    db: Database,
    files: Sequence[SourceFile],
    parent: Snapshot | None,
    sampling: Sampling | None,
    buffers: Pool,
    *,
    base: Snapshot | None = None,
) -> Bases:
    """Return the chunks that those of some files may be stored as differences from.

    Tensors that parent and base lack are sampled, and those of other versions that they resemble
    are their bases.

    Args:
        db: The store.
        files: The files.
        parent: The parent of the version that they are for; None if it has none.
        sampling: Their samples so far; None if none are taken for a signature.
        buffers: Memory to read into.
        base: The version to try before the parent; None for none.

    Raises:
        StoreError: The store could not be read.
    """
    by_path = {file.path: file for file in files}

    def read(path: str, piece: Piece) -> memoryview:
        file = by_path[path]
        [content] = file.look([piece]) or file.read([piece], buffers)
        return content

    named = [_chunks_of(one, files) for one in (base, parent) if one is not None]
    first, second = (*named, None, None)[:2]
    bases = find_rows(db, files, read, Bases(first, second=second), named)
    lacking = _lacking(files, bases, db.config.chunk_size)
    nbytes = sum(piece.nbytes for pieces in lacking.values() for piece in pieces)
    listed = db.signatures.listed() if nbytes >= _MIN_LACKING else {}
    if listed:  # before anything is read for samples
        new = _sampled(files, lacking, sampling or Sampling(files, buffers), buffers)
        if new is not None:  # otherwise a file could not be read, which the commit reports
            found = relatives(db, new, first, listed=listed)
            found.second = bases.second
            bases = find_rows(db, files, read, found.with_rows(bases.rows), found.related)
    bases = affordable(bases, files, db.config.chunk_size)
    for chunk in bases.foreign():
        db.index.find_chain(chunk)  # reads the packs that the encoder goes by
    return bases


def _lacking(
    files: Sequence[SourceFile], bases: Bases, chunk_size: int
) -> dict[SourceFile, list[Piece]]:
    """Return the places of each file that nothing is known for."""
    return {
        file: [piece for piece in file.pieces(chunk_size) if not bases.is_known(file.path, piece)]
        for file in files
    }


def _sampled(
    files: Sequence[SourceFile],
    lacking: Mapping[SourceFile, Sequence[Piece]],
    sampling: Sampling,
    buffers: Pool,
) -> New | None:
    """Return the tensors that begin at some places, sampled; None if that failed."""
    wanted: set[tuple[str, str | None]] = set()
    for file, pieces in lacking.items():
        for piece in pieces:
            sampling.take(file, [piece], {})
            wanted |= {(file.path, tensor.name) for tensor in piece.tensors}
            if not piece.tensors:
                wanted.add((file.path, None))
    tensors = sampling.samples.tensors
    numbers = [n for n, sampled in enumerate(tensors) if sampled.key in wanted]
    signature = Signature.of(sampling.samples, numbers)
    if signature is None:
        return None
    by_path = {file.path: file for file in files}

    def read(path: str, piece: Piece) -> memoryview:
        return by_path[path].read([piece], buffers)[0]

    return New(files, [tensors[n] for n in numbers], signature, read)


def _chunks_of(version: Snapshot, files: Sequence[SourceFile]) -> BaseChunks:
    """Return the chunks of a version; none if its headers or lists of chunks are lost."""
    try:
        return BaseChunks(version, files)
    except IntegrityError:  # a reader of that version gets the error
        return BaseChunks()
