"""What versions take as differences from each other, measured on a few chunks of each."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from casweights.format.codecs import encode
from casweights.format.differences import encode_difference
from casweights.operations.base_chunks import BaseChunks
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from casweights.config import Compression
    from casweights.database import Database
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId, SnapshotId

    Sizes = NDArray[np.float64]
    Pair = tuple[int, int]

_CHUNKS = 16  # of a version; of one with fewer, all
_HELD = 8  # chunks that a thread holds, so that few are rebuilt several times


class _Place(NamedTuple):
    """A place whose chunks are measured.

    Attributes:
        path: Path of the file.
        piece: The place in it.
        weight: How many chunks of its size it stands for.
    """

    path: str
    piece: Piece
    weight: float


class Trials:
    """Measures versions that have the same tensors, by their numbers, and remembers the results.

    A version that cannot be compared with the first one is left out: it lacks one of the places, or
    is derived from others, and takes less than any difference.

    Args:
        db: The store.
        versions: The versions.
        compression: How whole chunks are stored.
    """

    def __init__(
        self, db: Database, versions: Sequence[SnapshotId], compression: Compression
    ) -> None:
        self._db = db
        self._compression = compression
        first = db.snapshots.load(versions[0], with_locations=True)
        self._places = _spread(first)
        self._weights = np.array([place.weight for place in self._places])
        self._chunks: dict[int, list[ChunkId]] = {}
        for number, version in enumerate(versions):
            found = self._chunks_of(version, first)
            if len(found) == len(self._places):
                self._chunks[number] = found
        self._wholes: dict[int, Sizes] = {}
        self._differences: dict[Pair, Sizes] = {}

    @property
    def numbers(self) -> list[int]:
        """The numbers of the versions that are measured."""
        return list(self._chunks)

    def _chunks_of(self, version: SnapshotId, first: Snapshot) -> list[ChunkId]:
        """Return the chunks of a version at all places; fewer if it cannot be compared."""
        snapshot = self._db.snapshots.load(version, with_locations=True)
        like = BaseChunks(snapshot, first.files)
        found = (like.find(place.path, place.piece) for place in self._places)
        is_plain = self._db.index.plain_chain
        return [chunk for chunk in found if chunk is not None and is_plain(chunk) is not None]

    def whole(self, version: int) -> Sizes:
        """Return what the chunks of a version take whole."""
        if version not in self._wholes:
            sizes = []
            for place, (_, piece, _) in enumerate(self._places):
                encoded = encode(self._read(place, version), piece.dtype, self._compression)
                sizes.append(len(encoded[1]))
            self._wholes[version] = np.array(sizes) * self._weights
        return self._wholes[version]

    def difference(self, one: int, other: int) -> Sizes:
        """Return what the chunks of one version take as differences from another, either way."""
        pair = min(one, other), max(one, other)
        if pair not in self._differences:
            self.measure([pair])
        return self._differences[pair]

    def is_known(self, one: int, other: int) -> bool:
        """Whether the difference between two versions was measured before."""
        return (min(one, other), max(one, other)) in self._differences

    def measure(self, pairs: Iterable[Pair]) -> None:
        """Measure pairs of versions, the smaller number first."""
        wanted = [pair for pair in dict.fromkeys(pairs) if pair not in self._differences]
        # Place by place, so that few chunks are needed at a time.
        found = list(self._db.workers.map(partial(self._at, wanted), range(len(self._places))))
        for pair, sizes in zip(wanted, zip(*found, strict=True), strict=True):
            self._differences[pair] = np.array(sizes) * self._weights

    def _at(self, pairs: Sequence[Pair], place: int) -> list[int]:
        """Return the bytes of the difference between each two versions at one place."""
        read = lru_cache(_HELD)(partial(self._read, place))
        return [self._size(place, pair, read) for pair in pairs]

    def _size(self, place: int, pair: Pair, read: Callable[[int], memoryview]) -> int:
        base, new = pair
        if self._chunks[base][place] == self._chunks[new][place]:
            return 0
        piece = self._places[place].piece
        encoded = encode_difference(read(new), read(base), piece.dtype, piece.extents)
        return piece.nbytes if encoded is None else len(encoded[1])

    def _read(self, place: int, version: int) -> memoryview:
        raw = uninitialized(self._places[place].piece.nbytes)
        chunk = self._chunks[version][place]
        self._db.reader.with_local(self._db.cache).readinto(chunk, raw)
        self._db.cache.put(chunk, raw)  # the chunks of later versions build on it
        return raw


def _spread(version: Snapshot) -> list[_Place]:
    """Return places of a version that are spread over all its bytes."""
    size = version.config.chunk_size
    places = [(file.path, piece) for file in version.files for _, piece in file.pieces(size)]
    if len(places) <= _CHUNKS:
        return [_Place(path, piece, 1) for path, piece in places]
    ends = np.cumsum([piece.nbytes for _, piece in places])
    share = ends[-1] / _CHUNKS
    numbers = np.searchsorted(ends, (np.arange(_CHUNKS) + 0.5) * share)
    chosen, counts = np.unique(numbers, return_counts=True)
    found = zip(chosen.tolist(), counts.tolist(), strict=True)
    return [
        _Place(path, piece, count * share / piece.nbytes)
        for (path, piece), count in ((places[n], count) for n, count in found)
    ]
