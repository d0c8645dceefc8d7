"""Similar: the versions that a version, or some files, resemble most, by signatures alone."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.errors import IntegrityError, NotFoundError
from casweights.format.sampling import sampled_tensors
from casweights.operations.prediction import predict, whole_size
from casweights.operations.sampling import Sampling, signature_of
from casweights.results import SimilarTensor, SimilarVersion
from casweights.system.buffers import Pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.signatures import Relative
    from casweights.format.manifest import Snapshot
    from casweights.format.sampling import Sampled
    from casweights.format.signature import Signature


def similar_to_version(db: Database, version: Snapshot, limit: int) -> list[SimilarVersion]:
    """Return the versions that a version resembles most.

    Without a signature of it, a large part of it is read.

    Args:
        db: The store.
        version: The version, loaded with locations.
        limit: The number of versions to return at most.

    Raises:
        IntegrityError: The version cannot be read.
        StoreError: The store could not be read.
    """
    tensors, signature = _tensors(version), db.signatures.find(version.id)
    if signature is None or signature.grids != tuple(sampled.grid for sampled in tensors):
        signature = signature_of(db, version)  # missing, or forged
    found = _similar(db, signature, tensors, limit + 1)
    return [one for one in found if one.snapshot != version.id][:limit]


def similar_to_files(db: Database, files: Sequence[SourceFile], limit: int) -> list[SimilarVersion]:
    """Return the versions that some files resemble most, as `similar_to_version` does.

    Raises:
        InvalidInputError: A file cannot be read.
        StoreError: The store could not be read.
    """
    chunk_size = db.config.chunk_size
    sampling = Sampling(files, Pool(chunk_size))
    for file in files:
        for run in file.runs(chunk_size):
            sampling.take(file, run, {})
    return _similar(db, sampling.signature(), sampling.samples.tensors, limit)


def _similar(
    db: Database, signature: Signature | None, tensors: Sequence[Sampled], limit: int
) -> list[SimilarVersion]:
    if signature is None:  # no tensors, or files that cannot be read
        return []
    found = []
    for relative in db.signatures.nearest(signature):
        with suppress(IntegrityError, NotFoundError):  # gone, or its readers get the error
            found.append(_compared(db, signature, tensors, relative))
    return sorted(found, key=lambda one: one.nbytes)[:limit]


def _compared(
    db: Database, signature: Signature, tensors: Sequence[Sampled], relative: Relative
) -> SimilarVersion:
    others = _tensors(db.snapshots.load(relative.snapshot))
    matches = predict(signature, relative.signature)
    alike = []
    for match in matches:
        if match.base is not None and match.base < len(others):
            new, old = tensors[match.tensor], others[match.base]
            alike.append(SimilarTensor(*new.key, *old.key, round(match.nbytes)))
    return SimilarVersion(
        snapshot=relative.snapshot,
        nbytes=round(sum(match.nbytes for match in matches)),
        whole_bytes=round(sum(map(whole_size, signature.grids))),
        count=len(signature.grids),
        tensors=tuple(alike),
    )


def _tensors(version: Snapshot) -> list[Sampled]:
    return sampled_tensors((file.path, file.size, file.header) for file in version.files)
