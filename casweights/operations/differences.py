"""Differences between versions: which chunk to start from, and when to store a chunk whole.

A chunk is stored as the difference from the one at the same place of the version before it, so
that readers who have that version read little. Other readers read a *chain*: a whole chunk and all
differences since. Chains are bounded by what reading them costs; docs/design/005 has the measured
trade.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import IntegrityError
from casweights.format.codecs import encode, encode_difference
from casweights.format.hashing import checksum
from casweights.format.pack import EncodedFrame
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from casweights.config import Compression
    from casweights.database.chains import Chain
    from casweights.database.known_chunks import KnownChunks
    from casweights.database.reader import ChunkReader, TrustedChunks
    from casweights.format.dtypes import DType
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.format.pack import Location
    from casweights.ids import ChunkId

# Shares of a whole chunk's stored size; docs/design/005 has the measurements behind them.
_MAX_CHAIN_SHARE = 1 / 2  # of all differences of a chain together, if there are several
_MAX_DIRECT_SHARE = 0.9  # of the only difference of a chain: above it, decoding buys nothing
_SHORTCUT_DUE_SHARE = 1 / 3  # of the differences since the last shortcut, when another one is due
_MAX_FROM_WHOLE_SHARE = 1 / 4  # of a difference from the chain's whole chunk, beyond two steps
_MAX_EXTRA_STEP_SHARE = 1 / 6  # of a step that is stored in addition to what shortens its chain
_MAX_UNCOMPARED_SHARE = 1 / 8  # of a difference that is taken without encoding the chunk whole

_MIN_SKIPPED, _MAX_SKIPPED = 8, 64  # links that a shortcut replaces
_MAX_SHORTCUT_SHARE = 3 / 4  # of the bytes that a shortcut replaces; larger ones gain too little


class BaseChunks:
    """The chunks of a version, by their places in it."""

    def __init__(self, version: Snapshot | None = None) -> None:
        self._exact: dict[tuple[object, ...], ChunkId] = {}
        self._named: dict[tuple[object, ...], ChunkId] = {}
        if version is None:
            return
        for file in version.files:
            for chunk, piece in file.pieces(version.config.chunk_size):
                place = _place(piece)
                self._exact[(file.path, *place)] = chunk
                if piece.tensor is not None:
                    self._named[place] = chunk

    def find(self, path: str, piece: Piece) -> ChunkId | None:
        """The chunk at the same place: in the same file, or in the same tensor of another one."""
        place = _place(piece)
        return self._exact.get((path, *place)) or self._named.get(place)


def _place(piece: Piece) -> tuple[object, ...]:
    """What chunks must share to be worth comparing, their files apart."""
    return piece.tensor, piece.number, piece.nbytes, piece.dtype.code


class DifferenceEncoder:
    """Encodes chunks so that chains stay cheap to read.

    Args:
        reader: Reads bases.
        index: Knows the chains that new frames will be part of.
        trusted: May have the bases.
        compression: How whole chunks are stored.
    """

    def __init__(
        self,
        reader: ChunkReader,
        index: KnownChunks,
        trusted: TrustedChunks,
        compression: Compression,
    ) -> None:
        self._reader = reader.with_local(trusted)
        self._index = index
        self._trusted = trusted
        self._compression = compression

    def ahead(self) -> AbstractContextManager[Callable[[Sequence[ChunkId]], None]]:
        """See `LocalFirstReader.ahead`: for bases that will be read."""
        return self._reader.ahead(with_neighbours=True)

    def encode(self, raw: memoryview, dtype: DType, base: ChunkId | None) -> list[EncodedFrame]:
        """The frames to store for a chunk.

        Args:
            raw: The chunk's bytes.
            dtype: Their element type.
            base: The chunk at the same place of a related version.

        Returns:
            One frame, or two: a cheap step from `base` beside what makes the chain short.
        """
        chain = None if base is None else self._index.chain(base)
        if chain is None or chain.frames[0].frame.base is not None:
            return [self._whole(raw, dtype)]
        step = self._difference(raw, dtype, chain.frames[-1])
        if step is None:
            return [self._whole(raw, dtype)]
        whole, whole_size = None, chain.frames[0].frame.size
        if len(step.payload) > _MAX_UNCOMPARED_SHARE * whole_size:
            whole = self._whole(raw, dtype)
            whole_size = len(whole.payload)
        best = self._shorten(raw, dtype, chain, step, whole_size)
        if best is None:
            best = whole or self._whole(raw, dtype)
        if best is step or len(step.payload) > _MAX_EXTRA_STEP_SHARE * whole_size:
            return [best]
        # A follower lacks the shortcut's base; without the step it would read a whole chunk.
        return [best, step]

    def _shorten(
        self, raw: memoryview, dtype: DType, chain: Chain, step: EncodedFrame, whole_size: int
    ) -> EncodedFrame | None:
        """The step itself while the chain is cheap; else a shortcut, or None for a whole chunk."""
        sizes = [location.frame.size for location in chain.frames[1:]] + [len(step.payload)]
        if len(sizes) == 1:
            return step if sizes[0] <= _MAX_DIRECT_SHARE * whole_size else None
        behind = self._last_shortcut(chain)
        skipped, skipped_bytes = len(sizes) - behind, sum(sizes[behind:])
        due = skipped_bytes >= _SHORTCUT_DUE_SHARE * whole_size or skipped >= _MAX_SKIPPED
        best, total = step, sum(sizes)
        if due and skipped >= _MIN_SKIPPED:
            shortcut = self._difference(raw, dtype, chain.frames[behind])
            if (
                shortcut is not None
                and len(shortcut.payload) <= _MAX_SHORTCUT_SHARE * skipped_bytes
            ):
                best, total = shortcut, sum(sizes[:behind]) + len(shortcut.payload)
        if total <= _MAX_CHAIN_SHARE * whole_size:
            return best
        limit = min(
            _MAX_FROM_WHOLE_SHARE * whole_size + 2 * len(step.payload),
            _MAX_CHAIN_SHARE * whole_size,
        )
        from_root = self._difference(raw, dtype, chain.frames[0])
        return from_root if from_root and len(from_root.payload) <= limit else None

    def _last_shortcut(self, chain: Chain) -> int:
        """The last place of a chain with more than one frame, or its beginning."""
        for n in range(len(chain.frames) - 1, 0, -1):
            if len(self._index.frames(chain.frames[n].frame.chunk)) > 1:
                return n
        return 0

    def _whole(self, raw: memoryview, dtype: DType) -> EncodedFrame:
        encoding, payload = encode(raw, dtype, self._compression)
        return EncodedFrame(encoding, payload, checksum(payload))

    def _difference(self, raw: memoryview, dtype: DType, location: Location) -> EncodedFrame | None:
        base = location.frame.chunk
        if location.frame.raw_size != len(raw):
            return None
        old = self._trusted.get(base)
        if old is None:
            old = scratch(len(raw))
            try:
                self._reader.readinto(base, old)
            except IntegrityError:  # a reader of that version gets the error
                return None
        encoded = encode_difference(raw, old, dtype)
        if encoded is None:
            return None
        encoding, payload = encoded
        return EncodedFrame(encoding, payload, checksum(payload), base)
