"""Find the version of a store that a new version resembles most."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from casweights.errors import IntegrityError
from casweights.format.codecs import encode, encode_difference
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from casweights.database.reader import LocalFirstReader
    from casweights.format.layout import Piece
    from casweights.ids import ChunkId
    from casweights.operations.differences import BaseChunks

    Place = tuple[str, Piece]  # a file's path, and a piece of that file
    Shared = tuple[str, Piece, ChunkId]  # the same, and the candidate's chunk at this place

_MAX_CANDIDATES = 16  # versions to compare with; each costs a few reads
_SAMPLES = 4  # chunks to compare: related versions are similar nearly everywhere
_MIN_SHARED = 0.5  # share of the new version's bytes that must have a counterpart
# Share of the whole chunks as stored. What builds on a larger difference must be stored whole in
# turn, because two such differences cost too much to read: the larger one has saved nothing.
_MAX_COST = 0.5


def nearest(
    candidates: Iterable[BaseChunks],
    places: Sequence[Place],
    read: Callable[[str, Piece], memoryview],
    reader: LocalFirstReader,
) -> BaseChunks | None:
    """Return the version from which a new one differs least, judged by a few chunks.

    Args:
        candidates: Versions of the store; only the first 16 are compared.
        places: All places of the new version.
        read: Returns the new version's bytes at one place.
        reader: Reads the candidates' chunks.

    Returns:
        The best candidate, or None if differences from none of them are worth storing.
    """

    @cache
    def whole(path: str, piece: Piece) -> int:
        return len(encode(read(path, piece), piece.dtype, "auto")[1])

    total = sum(piece.nbytes for _, piece in places)
    best, least = None, _MAX_COST
    for _, candidate in zip(range(_MAX_CANDIDATES), candidates, strict=False):
        bases = ((path, piece, candidate.find(path, piece)) for path, piece in places)
        shared = [(path, piece, base) for path, piece, base in bases if base is not None]
        if sum(piece.nbytes for _, piece, _ in shared) < _MIN_SHARED * total or not shared:
            continue
        cost = _cost(_samples(shared), read, whole, reader)
        if cost < least:
            best, least = candidate, cost
    return best


def _samples(shared: Sequence[Shared]) -> list[Shared]:
    """Return a few of the largest chunks, spread over the whole version."""
    size = max(piece.nbytes for _, piece, _ in shared)
    large = [place for place in shared if place[1].nbytes == size]
    return large[:: max(1, len(large) // _SAMPLES)][:_SAMPLES]


def _cost(
    samples: Sequence[Shared],
    read: Callable[[str, Piece], memoryview],
    whole: Callable[[str, Piece], int],
    reader: LocalFirstReader,
) -> float:
    """Return the size of the samples' differences, as a share of the samples stored whole."""
    cost = total = 0
    for path, piece, base in samples:
        raw, old = read(path, piece), scratch(piece.nbytes)
        size = whole(path, piece)
        total += size
        try:
            reader.readinto(base, old)
        except IntegrityError:  # a damaged candidate must not stop a commit; its readers report it
            return 1
        encoded = encode_difference(raw, old, piece.dtype)
        cost += size if encoded is None else len(encoded[1])
    return cost / total
