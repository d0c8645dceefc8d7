"""The version of a store that a new one resembles most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import IntegrityError
from casweights.format.codecs import encode_difference
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from casweights.database.reader import LocalFirstReader
    from casweights.format.layout import Piece
    from casweights.ids import ChunkId
    from casweights.operations.differences import BaseChunks

    Place = tuple[str, Piece]  # the path of a file, and a piece of it
    Shared = tuple[str, Piece, ChunkId]  # the same, and a candidate's chunk there

_MAX_CANDIDATES = 16  # versions to compare with; each costs a few reads
_SAMPLES = 4  # chunks to compare: versions are related everywhere or hardly anywhere
_MIN_SHARED = 0.5  # of the bytes, which must have a counterpart
_MAX_COST = 0.9  # of the chunks' bytes; differences that take more are not worth decoding


def nearest(
    candidates: Iterable[BaseChunks],
    places: Sequence[Place],
    read: Callable[[str, Piece], memoryview],
    reader: LocalFirstReader,
) -> BaseChunks | None:
    """The version from which a new one differs least, judged by a few chunks.

    Args:
        candidates: Versions of the store; the first ones are looked at.
        places: All places of the new version.
        read: Gives the new version's bytes of one place.
        reader: Reads the candidates' chunks.

    Returns:
        One of the candidates; None if no differences are worth storing.
    """
    total = sum(piece.nbytes for _, piece in places)
    best, least = None, _MAX_COST
    for _, candidate in zip(range(_MAX_CANDIDATES), candidates, strict=False):
        bases = ((path, piece, candidate.find(path, piece)) for path, piece in places)
        shared = [(path, piece, base) for path, piece, base in bases if base is not None]
        if sum(piece.nbytes for _, piece, _ in shared) < _MIN_SHARED * total or not shared:
            continue
        cost = _cost(_samples(shared), read, reader)
        if cost < least:
            best, least = candidate, cost
    return best


def _samples(shared: Sequence[Shared]) -> list[Shared]:
    """Some of the largest chunks, from all over the version."""
    size = max(piece.nbytes for _, piece, _ in shared)
    large = [place for place in shared if place[1].nbytes == size]
    return large[:: max(1, len(large) // _SAMPLES)][:_SAMPLES]


def _cost(
    samples: Sequence[Shared], read: Callable[[str, Piece], memoryview], reader: LocalFirstReader
) -> float:
    """What differences of some chunks take, as a share of the chunks."""
    cost = total = 0
    for path, piece, base in samples:
        raw, old = read(path, piece), scratch(piece.nbytes)
        total += piece.nbytes
        try:
            reader.readinto(base, old)
        except IntegrityError:  # a reader of that version gets the error
            return 1
        encoded = encode_difference(raw, old, piece.dtype)
        cost += piece.nbytes if encoded is None else len(encoded[1])
    return cost / total
