"""The search of a commit for its chunks in packs that the base does not name."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from casweights.config import PACK_TARGET, KiB
from casweights.system.threads import Once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database import Database
    from casweights.database.index import Hold
    from casweights.format.pack import EncodedFrame
    from casweights.ids import ChunkId

_COSTLY_SHARE = 1 / 8  # of a chunk's raw size: a larger frame may be worth a look
_LEAST_AT_STAKE = 64 * KiB  # of costly frames: below, a listing costs more than it can save
_MAX_READ_PACKS = 512  # behind a network; reading more costs more than it saves
_BYTES_FOR_A_PACK = 16 * KiB  # of a commit, for each other pack that is read in a directory
_MAX_IN_VAIN = 256  # chunks that are looked up behind a network although none of them was there


class PackSearch:
    """Looks for chunks in packs that no snapshot has named, where this may save more than it costs.

    A look lists all packs of the store and reads those that no segment covers, so its cost grows
    with the number of versions since the last `maintain`:

    * For a chunk at a place that neither the base nor a relative has, all these packs are read,
      because the chunk may be part of a variant in the store.
    * For other chunks, the packs are listed only once their frames fill a pack, or costly chunks
      are large enough together. A chunk is costly if its frame takes more than a share of its raw
      size; steps of training never reach that limit. Then the number of packs that are read is
      limited by the commit's size.

    It looks at most once for each of the two reasons. After a look it searches the chunks in the
    segments: behind a network only until many of them were searched in vain. Safe for use from
    several threads.

    Args:
        db: The store.
        nbytes: Number of bytes of the commit.
        is_first: Whether the commit has no base.
    """

    def __init__(self, db: Database, nbytes: int, *, is_first: bool) -> None:
        self._index = db.index
        self._limit = None if db.store.capabilities.cheap_reads else _MAX_READ_PACKS
        self._lock = threading.Lock()
        self._at_stake = 0  # bytes of costly frames
        self._nbytes = 0  # of all frames
        self._costly: list[ChunkId] = []  # not searched yet
        self._in_vain = 0
        self._least = 0 if is_first else _LEAST_AT_STAKE
        paid = _MAX_READ_PACKS if self._limit else max(_MAX_READ_PACKS, nbytes // _BYTES_FOR_A_PACK)
        self._everywhere = Once(partial(db.index.survey, self._limit))
        self._for_known_place = self._everywhere if is_first else Once(partial(db.index.look, paid))

    def for_new_place(self, chunks: Sequence[ChunkId] = ()) -> None:
        """Look for chunks, of which one is at a place that the base does not have."""
        self._everywhere()
        self._look_up(chunks)

    def for_frames(self, chunk: ChunkId, frames: Sequence[EncodedFrame], raw_size: int) -> None:
        """Look for a chunk at any other place, if it and earlier ones are worth it.

        A commit whose frames fill a pack looks before it writes that pack.

        Args:
            chunk: The chunk.
            frames: The frames to store for the chunk if the store lacks it.
            raw_size: Number of bytes of the chunk.
        """
        sizes = [len(frame.payload) for frame in frames]
        # The smallest frame decides, since a cheap step may come along with a whole frame.
        is_costly = min(sizes) > _COSTLY_SHARE * raw_size
        with self._lock:
            self._nbytes += sum(sizes)
            self._at_stake += min(sizes) if is_costly else 0
            self._costly += [chunk] * is_costly
            if self._nbytes < PACK_TARGET and not (is_costly and self._at_stake >= self._least):
                return
            chunks, self._costly = self._costly, []
        self._for_known_place()
        self._look_up(chunks)

    def _look_up(self, chunks: Sequence[ChunkId]) -> None:
        """Search chunks in the segments, unless others were searched in vain."""
        if not chunks or (self._limit is not None and self._in_vain > _MAX_IN_VAIN):
            return
        self._index.look_up(chunks)
        missing = self._index.having(chunks).count(None)
        with self._lock:
            self._in_vain = self._in_vain + missing if missing == len(chunks) else 0

    def are_there(self, chunks: Sequence[ChunkId], hold: Hold) -> bool:
        """Look up the packs that a version relies on; return whether all chunks still exist.

        Args:
            chunks: The chunks that are neither part of the base nor written for the version.
            hold: A hold from before the first of them was searched.
        """
        packs = self._index.unproven(chunks, hold)
        if self._index.recheck(packs):
            self._index.find_again(chunks, self._limit)
        return not packs or None not in self._index.having(chunks)
