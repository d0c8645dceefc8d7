"""Collects frames in packs and writes the packs to the store."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from casweights.config import PACK_FRAMES, PACK_TARGET
from casweights.format.envelope import PREFIX_SIZE
from casweights.format.pack import EncodedFrame, Frame, OpenPack, SealedPack
from casweights.system.threads import Background

if TYPE_CHECKING:
    from casweights.database import Database
    from casweights.ids import ChunkId
    from casweights.system.buffers import Buffer


class PackWriter:
    """Collects frames and writes them as packs of about `PACK_TARGET` bytes in the background.

    The order of calls, all from one thread:

    1. `add` each chunk. A full pack is written by a thread of the writer, and its chunks enter the
       index once it is durable. `add` waits while too many packs are being written.
    2. Either `finish`, after which all packs are durable. Or `last`, which returns the frames if
       all of them fit in one pack: a snapshot's object carries them, or `seal` makes a pack.
    3. `close`, always.

    If writing a pack fails, a later call raises the error, `finish` at the latest.

    Args:
        database: The store to write to.
        generation: Generation of the packs: 0 for a commit; in a repack, one more than the highest
            generation of the packs that are replaced.
        only_new: Whether to leave out chunks that the index contains when the pack is written,
            because a pack with them was found after they were added.

    Attributes:
        packs: Number of packs that were sealed so far.
        chunks: Number of distinct chunks added.
        raw_bytes: Number of bytes of these chunks.
        stored_bytes: Number of bytes of their frames.
        names: Names of the packs that are in the store.
        existed: Those that the store contained before, perhaps damaged.
    """

    def __init__(self, database: Database, generation: int = 0, *, only_new: bool = False) -> None:
        self._db = database
        self._generation = generation
        self._only_new = only_new
        self._puts = Background(database.store.capabilities.parallel_puts)
        self._added: set[ChunkId] = set()
        self._start_pack()
        self.packs = 0
        self.raw_bytes = 0
        self.stored_bytes = 0
        self.names: set[str] = set()
        self.existed: set[str] = set()

    def _start_pack(self) -> None:
        """Begin an empty pack."""
        self._frames: list[Frame] = []
        self._payloads: list[Buffer] = []
        self._size = PREFIX_SIZE

    def has(self, chunk: ChunkId) -> bool:
        """Return whether a chunk was added."""
        return chunk in self._added

    @property
    def chunks(self) -> int:
        """Number of distinct chunks added so far."""
        return len(self._added)

    def add(self, chunk: ChunkId, raw_size: int, frames: list[EncodedFrame]) -> None:
        """Add a chunk, unless it was added before.

        Args:
            chunk: The chunk.
            raw_size: Number of its bytes.
            frames: Its frames, one or more, each enough to rebuild it; an empty list adds nothing.
        """
        if not frames or chunk in self._added:
            return
        self._added.add(chunk)
        self.raw_bytes += raw_size
        for frame in frames:
            self._add_frame(chunk, raw_size, frame)

    def _add_frame(self, chunk: ChunkId, raw_size: int, frame: EncodedFrame) -> None:
        """Add a frame to the open pack; write that pack first if the frame does not fit."""
        size = len(frame.payload)
        full = self._size + size > PACK_TARGET or len(self._frames) == PACK_FRAMES
        if self._frames and full:
            self._flush()
        self._append(frame.of(chunk, raw_size), frame.payload)
        self.stored_bytes += size

    def _append(self, frame: Frame, payload: Buffer) -> None:
        """Append a frame to the open pack, with its new offset."""
        self._frames.append(frame.at(self._size))
        self._payloads.append(payload)
        self._size += frame.size

    def _drop_known(self) -> None:
        """Remove the chunks from the open pack that the index contains by now."""
        index = self._db.index
        known = {f.chunk: f.raw_size for f in self._frames if f.chunk in index}
        if not (self._only_new and known):
            return
        frames, payloads = self._frames, self._payloads
        self._start_pack()
        for frame, payload in zip(frames, payloads, strict=True):
            if frame.chunk in known:
                self.stored_bytes -= frame.size
            else:
                self._append(frame, payload)
        self.raw_bytes -= sum(known.values())
        self._added -= known.keys()

    def _flush(self) -> None:
        self._drop_known()
        if not self._frames:
            return
        self._puts.submit(partial(self._put, seal(self._db, self._take(), self._generation)))

    def _take(self) -> OpenPack:
        """Return the frames of the open pack, and begin another one."""
        taken = OpenPack(self._frames, self._payloads)
        self._start_pack()
        self.packs += 1
        return taken

    def _put(self, pack: SealedPack) -> None:
        """Write a pack and add it to the index; runs on a thread of the writer."""
        if not self._db.store.put(pack.name, pack.parts):
            self.existed.add(pack.name)
        self._db.index.add(pack.name, pack.size, pack.locations, self._generation)
        self.names.add(pack.name)

    def last(self) -> OpenPack | None:
        """Return all frames, for one object that the caller writes.

        If there is more than one pack, this writes all of them like `finish`, and returns None. It
        also returns None if no chunk was added.
        """
        if self.packs:
            self.finish()
            return None
        self._drop_known()
        return self._take() if self._frames else None

    def finish(self) -> None:
        """Write the open pack, and wait until all packs are durable."""
        if self._frames:
            self._flush()
        self._puts.finish()

    def close(self) -> None:
        """Stop the threads. Packs that are not written yet may be left out."""
        self._puts.close()


def seal(db: Database, frames: OpenPack, generation: int = 0) -> SealedPack:
    """Return a pack of these frames that has another name than all damaged packs.

    A store never replaces an object. A frame that is listed a second time gives the pack another
    ID.
    """
    pack = frames.seal(generation)
    while db.index.is_damaged(pack.pack):
        frames = frames.repeated()
        pack = frames.seal(generation)
    return pack
