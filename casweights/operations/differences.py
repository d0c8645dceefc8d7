"""Differences between versions: which base to choose, and when to store a chunk whole.

A chunk is stored as the difference from the chunk at the same place of the previous version, so
that readers that hold that version read little. Other readers read a *chain*: a whole chunk and
all differences since. Chains are limited by the bytes that reading them costs; docs/design/005 has
the measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.errors import IntegrityError
from casweights.format.codecs import encode
from casweights.format.differences import encode_difference
from casweights.format.hashing import checksum
from casweights.format.layout import BYTES, Piece
from casweights.format.pack import EncodedFrame
from casweights.operations.derivations import derive
from casweights.operations.slices import in_proportion
from casweights.system.buffers import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from casweights.config import Compression
    from casweights.database.chain import Chain
    from casweights.database.known_chunks import KnownChunks
    from casweights.database.reader import ChunkReader, TrustedChunks
    from casweights.format.dtypes import DType
    from casweights.format.pack import Location
    from casweights.ids import ChunkId, PackId
    from casweights.operations.base_chunks import BaseChunks
    from casweights.operations.derivations import Derivation
    from casweights.operations.shortcuts import Schedule

# Sizes of differences, as shares of a whole chunk's stored size; docs/design/005 has the
# measurements behind them.
MAX_CHAIN_SHARE = 1 / 2  # all differences of a chain together, if it has several
MAX_TENSOR_SHARE = 2.0  # the same where the version as a whole keeps to its half
_ROUND_CHAIN_SHARE = 1 / 5  # the same in versions where many chains end together
_MAX_GROWTH = 5 / 4  # of a larger difference, from one version to the next
MAX_DIRECT_SHARE = 0.9  # the only difference of a chain: a larger one is not worth decoding
_SHORTCUT_DUE_SHARE = 1 / 3  # the differences since the last shortcut that make the next one due
_MAX_FROM_WHOLE_SHARE = 1 / 4  # a difference from the chain's whole chunk, in addition to two steps
_MAX_EXTRA_STEP_SHARE = 1 / 6  # a step that is stored along with the frame that shortens its chain
_MAX_UNCOMPARED_SHARE = 1 / 8  # a difference that is used without encoding the chunk whole

# What the chain of a derived frame takes, with its roots in proportion; where it is calculated, a
# reader needs all of roots that are larger than the chunk, or twice as many.
_MAX_READ, _MAX_CALCULATED = 3 / 2, 5 / 2
_MAX_COSTLY_SHARE = 1 / 2  # of a difference from one chunk, where two would have to be read

_MIN_SKIPPED, _MAX_SKIPPED = 8, 64  # number of differences that a shortcut replaces
_MAX_SHORTCUT_SHARE = 3 / 4  # of the bytes that a shortcut replaces; larger ones gain too little
_MAX_SCHEDULED_SHARE = 1  # the same where a shortcut is to save packs


class _Due(NamedTuple):
    """A shortcut that may be worth storing.

    Attributes:
        base: The position of its base in the chain.
        share: Its largest size, as a share of the bytes that it replaces.
    """

    base: int
    share: float


def growth(bases: BaseChunks, index: KnownChunks) -> float:
    """Return by which factor large differences may grow from a version to the next one.

    If those of all its chunks grew by it, they would take no more than their share together. Whole
    chunks count as if they had used theirs up, because the next version may do that.

    Args:
        bases: The chunks of the version.
        index: Knows their chains.
    """
    whole = used = 0.0
    for chunk in bases.chunks():
        if (chain := index.chain(chunk)) is not None:
            whole += chain.whole_size
            used += (chain.read_size - chain.whole_size) or MAX_CHAIN_SHARE * chain.whole_size
    return min(_MAX_GROWTH, MAX_CHAIN_SHARE * whole / used) if used else 1


class DifferenceEncoder:
    """Encodes chunks so that their chains stay cheap to read.

    A *step* is the difference from the base that the caller names; the chain of the base ends with
    it. A *shortcut* is the difference from an earlier chunk of that chain: it replaces steps, and
    earlier shortcuts, for readers that start from nothing. `encode` may run on several threads at
    once.

    Args:
        reader: Reads bases.
        index: Knows the chains of bases.
        trusted: Bases in memory, which need not be read or verified.
        structure: The same for bases of structure chunks.
        compression: How whole chunks are stored.
        schedule: Shortcuts in addition to those that bytes call for; None if all versions lie in
            the same packs.
        growth: Returns the `growth` of the version whose chunks are the bases.
        chain_share: What all differences of a chain take at most, as a share of a whole chunk. A
            caller that allows more has seen that the version as a whole keeps to its share.
        is_plain: Whether no chain may begin with a derived frame.
    """

    def __init__(
        self,
        reader: ChunkReader,
        index: KnownChunks,
        trusted: TrustedChunks,
        structure: TrustedChunks,
        compression: Compression,
        schedule: Schedule | None = None,
        growth: Callable[[], float] = lambda: 1,
        chain_share: float = MAX_CHAIN_SHARE,
        *,
        is_plain: bool = False,
    ) -> None:
        self._reader = reader.with_local(trusted)
        self._index = index
        self._trusted = trusted
        self._structure = structure
        self._compression = compression
        self._schedule = schedule
        self._growth = growth
        self._chain_share = chain_share
        self.is_plain = is_plain

    def ahead(self) -> AbstractContextManager[Callable[[Sequence[ChunkId]], None]]:
        """Return a context manager whose function fetches the bases that will be read soon.

        The function accepts chunk IDs and returns at once; the reads run in the background.
        """
        return self._reader.ahead(with_neighbours=True)

    def encode(
        self,
        raw: memoryview,
        piece: Piece,
        base: ChunkId | None,
        *,
        plain: bool = False,
        step: EncodedFrame | None = None,
    ) -> list[EncodedFrame]:
        """Return the frames to store for a chunk.

        A chunk is stored whole where a difference would be too large, and where its base is
        damaged, has another size or has no chain from a whole frame: a commit must not fail for
        that.

        Args:
            raw: The chunk's bytes.
            piece: Its place: their element type, and the tensors that share the chunk.
            base: The chunk at the same place of a related version; None to store it whole.
            plain: Whether its chain must not begin with a derived frame.
            step: The difference from `base`, if it is known.

        Returns:
            One frame; or two, namely a frame that keeps the chain short and a cheap step from
            `base`.

        Raises:
            StoreError: A base could not be read.
        """
        plain |= self.is_plain
        chain = None if base is None else self._index.chain(base)
        # Sizes below are compared with the whole frame at the chain's beginning.
        if chain is None or chain.base is not None or (plain and chain.roots):
            return [self._whole(raw, piece.dtype)]
        step = step or self._difference(raw, piece, chain.frames[-1])
        if step is None:
            return [self._whole(raw, piece.dtype)]
        whole, whole_size = None, chain.whole_size
        if len(step.payload) > _MAX_UNCOMPARED_SHARE * whole_size:
            whole = self._whole(raw, piece.dtype)
            whole_size = len(whole.payload)
        best = self._shorten(raw, piece, chain, step, whole_size)
        if best is None:
            best = whole or self._whole(raw, piece.dtype)
        if best is step or len(step.payload) > _MAX_EXTRA_STEP_SHARE * whole_size:
            return [best]
        # A replica that follows the branch version by version holds `base`, but not the shortcut's
        # base: without the step it would read a whole chunk.
        return [best, step]

    def encode_derived(
        self, raw: memoryview, piece: Piece, made: Derivation, base: ChunkId | None = None
    ) -> list[EncodedFrame]:
        """Return the frames to store for a chunk that is made from several others.

        Args:
            raw: The chunk's bytes.
            piece: Its place.
            made: What it is made from: chunks of related versions.
            base: As for `encode`, where making it would not be worth it.

        Returns:
            One frame: derived from these chunks, or those that `encode` returns.

        Raises:
            StoreError: A chunk could not be read.
        """
        if self.is_plain:
            return self.encode(raw, piece, base)
        chains = {c: chain for c in made.chunks if (chain := self._index.plain_chain(c))}
        frame, others = None, list[EncodedFrame]()
        if len(chains) == len(list(made.chunks)) and not any(c.base for c in chains.values()):
            sizes = {chunk: chain.frames[-1].frame.raw_size for chunk, chain in chains.items()}
            frame = derive(raw, piece, made, sizes, self._old)
        if frame is not None:
            size, (read, whole_size) = len(frame.payload), in_proportion(made.slices, chains)
            whole_size *= len(raw) / made.nbytes
            share = MAX_DIRECT_SHARE if base is None else _MAX_COSTLY_SHARE
            most = share * whole_size
            if size > _MAX_UNCOMPARED_SHARE * whole_size or base is not None:
                others = self.encode(raw, piece, base)
                most = share * len(others[0].payload)
                if made.source is None:
                    whole_size = self._whole_size(others[0])
            most_read = _MAX_READ if made.source is None else _MAX_CALCULATED
            if size <= min(most, most_read * whole_size - read):
                return [frame]
        return others or self.encode(raw, piece, base)

    def encode_structure(self, raw: memoryview, base: ChunkId | None) -> list[EncodedFrame]:
        """Return the frames to store for a structure chunk.

        Every reader of a version needs its structure chunks, so their chains must stay short for
        any number of versions: the sizes of differences along a chain at least halve. Where the
        difference from the parent's chunk is too large for that, an earlier chunk of the chain is
        the base.

        Args:
            raw: The chunk's bytes.
            base: The structure chunk at the same place of the parent.
        """
        whole, piece = self._whole(raw, BYTES), Piece(0, len(raw), BYTES)
        chain = None if base is None else self._index.chain(base)
        if chain is None or chain.base is not None or chain.roots:
            return [whole]
        limit = len(whole.payload)
        for location in reversed(chain.frames):
            difference = self._difference(raw, piece, location, self._structure)
            if difference is None or 2 * len(difference.payload) > limit:
                break
            if location.frame.base is None or 2 * len(difference.payload) <= location.frame.size:
                return [difference]
        return [whole]

    def _shorten(
        self, raw: memoryview, piece: Piece, chain: Chain, step: EncodedFrame, whole_size: int
    ) -> EncodedFrame | None:
        """Return the step while the chain is cheap to read, then a shortcut.

        Returns:
            None if the chunk should be stored whole.
        """
        sizes = [location.frame.size for location in chain.frames[1:]] + [len(step.payload)]
        if len(sizes) == 1 and not chain.roots:
            return step if sizes[0] <= MAX_DIRECT_SHARE * whole_size else None
        # What a derived frame takes, and the differences of its roots, count as differences, too.
        by_itself = max(whole_size, chain.whole_size)
        before = max(0, chain.read_size - by_itself - sum(sizes[:-1])) if chain.roots else 0
        best, total = step, before + sum(sizes)
        due = self._due(chain, sizes, whole_size)
        if due is not None:
            behind, limit = due.base, due.share * sum(sizes[due.base :])
            shortcut = self._difference(raw, piece, chain.frames[behind])
            if shortcut is not None and len(shortcut.payload) <= limit:
                best, total = shortcut, before + sum(sizes[:behind]) + len(shortcut.payload)
        is_round = self._is_round(chain)
        most = (_ROUND_CHAIN_SHARE if is_round else self._chain_share) * whole_size
        if total <= most and sizes[-1] <= MAX_DIRECT_SHARE * whole_size:
            return best
        from_root = self._difference(raw, piece, chain.frames[0])
        if from_root is None:
            return None
        size, worth = len(from_root.payload), _MAX_FROM_WHOLE_SHARE * whole_size + 2 * sizes[-1]
        if most < before + size and size <= worth and not is_round:
            # A chunk that changes more than others may use what these leave of the version's share.
            room = self._growth() * (before + sum(sizes[:-1]))
            most = max(most, min(room, MAX_DIRECT_SHARE * whole_size))
        return from_root if size <= min(most - before, worth) else None

    def _due(self, chain: Chain, sizes: Sequence[int], whole_size: int) -> _Due | None:
        """Return the shortcut that is due; None if none is.

        Args:
            chain: The chain of the base.
            sizes: Bytes of the differences of the chain, and of the new step.
            whole_size: Bytes of the whole chunk.
        """
        behind = self._last_shortcut(chain)
        skipped, skipped_bytes = len(sizes) - behind, sum(sizes[behind:])
        # What a caller has seen to be cheap as a whole needs no shortcuts for its bytes.
        is_costly = skipped_bytes >= _SHORTCUT_DUE_SHARE * whole_size
        is_costly &= self._chain_share == MAX_CHAIN_SHARE
        if (is_costly and skipped >= _MIN_SKIPPED) or skipped >= _MAX_SKIPPED:
            return _Due(behind, _MAX_SHORTCUT_SHARE)
        if self._schedule is None:
            return None
        passed = self._schedule.passed(self._step_packs(chain, behind))
        for _ in range(passed or 0):
            behind = self._last_shortcut(chain, behind)
        return None if passed is None else _Due(behind, _MAX_SCHEDULED_SHARE)

    def _is_round(self, chain: Chain) -> bool:
        """Whether chains end in this version so that they end together, see `Schedule`."""
        packs = self._step_packs(chain, self._last_shortcut(chain))
        return self._schedule is not None and self._schedule.is_round(packs)

    @staticmethod
    def _step_packs(chain: Chain, behind: int) -> list[PackId]:
        """Return the packs of the frames after a position in a chain."""
        return [step.pack for step in chain.frames[behind + 1 :]]

    def _last_shortcut(self, chain: Chain, before: int | None = None) -> int:
        """Return the position in a chain of the last chunk with a shortcut, or 0 without any.

        Args:
            chain: The chain.
            before: Only earlier positions count.

        Only shortcuts that were stored along with their step count: their chunks have two frames.
        """
        for n in range((len(chain.frames) if before is None else before) - 1, 0, -1):
            if len(self._index.frames(chain.frames[n].frame.chunk)) > 1:
                return n
        return 0

    def _whole_size(self, frame: EncodedFrame) -> int:
        """Return the bytes of a whole frame, or of that which the chain of a difference has."""
        chain = None if frame.base is None else self._index.chain(frame.base)
        return len(frame.payload) if chain is None else chain.whole_size

    def _whole(self, raw: memoryview, dtype: DType) -> EncodedFrame:
        """Return a frame without a base."""
        encoding, payload = encode(raw, dtype, self._compression)
        return EncodedFrame(encoding, payload, checksum(payload))

    def _difference(
        self,
        raw: memoryview,
        piece: Piece,
        location: Location,
        trusted: TrustedChunks | None = None,
    ) -> EncodedFrame | None:
        """Return the difference from the chunk of a frame; None if it is unsuitable or damaged."""
        base = location.frame.chunk
        if location.frame.raw_size != len(raw):
            return None
        old = self._old(base, len(raw), trusted)
        encoded = None if old is None else encode_difference(raw, old, piece.dtype, piece.extents)
        if encoded is None:
            return None
        encoding, payload = encoded
        return EncodedFrame(encoding, payload, checksum(payload), base)

    def _old(
        self, chunk: ChunkId, nbytes: int, trusted: TrustedChunks | None = None
    ) -> memoryview | None:
        """Return a chunk, valid until the thread's next call; None if it is damaged."""
        old = (trusted or self._trusted).get(chunk)
        if old is None:
            old = scratch(nbytes)
            try:
                self._reader.readinto(chunk, old)
            except IntegrityError:  # a damaged base must not stop a commit; its readers report it
                return None
        return old
