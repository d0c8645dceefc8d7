"""Frames into packs, and packs into the store."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from casweights.config import PACK_FRAMES, PACK_TARGET
from casweights.format.envelope import PREFIX_SIZE, ObjectKind, prefix
from casweights.format.pack import EncodedFrame, Frame, SealedPack, build_index
from casweights.system.threads import Background

if TYPE_CHECKING:
    from casweights.database import Database
    from casweights.ids import ChunkId
    from casweights.system.buffers import Buffer


class PackWriter:
    """Collects frames and writes them as packs of about `PACK_TARGET` bytes in the background.

    `add` chunks from one thread. Full packs are sealed and written by threads of the writer's own,
    and `add` waits while too many are on their way. In the end call `finish`, after which all is
    durable, or `last`, which leaves a lone pack to the caller, and `written` once that is in the
    store. `close` always. An error of an earlier write is raised by the next call.

    Args:
        database: Where they go.
        generation: Of the packs, see `build_index`.

    Attributes:
        packs: Packs begun to be written.
        chunks: Distinct chunks added.
        raw_bytes: Their bytes.
        stored_bytes: Bytes of their frames.
        names: Names of the packs that are in the store.
    """

    def __init__(self, database: Database, generation: int = 0) -> None:
        self._db = database
        self._generation = generation
        self._puts = Background(database.store.capabilities.parallel_puts)
        self._added: set[ChunkId] = set()
        self._start_pack()
        self.packs = 0
        self.raw_bytes = 0
        self.stored_bytes = 0
        self.names: set[str] = set()

    def _start_pack(self) -> None:
        self._frames: list[Frame] = []
        self._parts: list[Buffer] = [prefix(ObjectKind.PACK)]
        self._size = PREFIX_SIZE

    @property
    def chunks(self) -> int:
        """Distinct chunks added so far."""
        return len(self._added)

    def add(self, chunk: ChunkId, raw_size: int, frames: list[EncodedFrame]) -> None:
        """Add a chunk in one or more encodings, unless it was added before."""
        if not frames or chunk in self._added:
            return
        self._added.add(chunk)
        self.raw_bytes += raw_size
        for frame in frames:
            self._add_frame(chunk, raw_size, frame)

    def _add_frame(self, chunk: ChunkId, raw_size: int, frame: EncodedFrame) -> None:
        size = len(frame.payload)
        full = self._size + size > PACK_TARGET or len(self._frames) == PACK_FRAMES
        if self._frames and full:
            self._flush()
        self._frames.append(
            Frame(chunk, raw_size, frame.encoding, self._size, size, frame.checksum, frame.base)
        )
        self._parts.append(frame.payload)
        self._size += size
        self.stored_bytes += size

    def _flush(self) -> None:
        self._puts.submit(partial(self._put, self._seal()))

    def _seal(self) -> SealedPack:
        frames, parts = self._frames, self._parts
        pack, ending = build_index(frames, self._generation)
        while self._db.index.is_damaged(pack):
            # Somebody may still read parts of the damaged pack, so it stays as it is. With one
            # frame repeated, ours has another ID.
            last = frames[-1]
            frames.append(replace(frames[0], offset=last.offset + last.size))
            parts.append(parts[1])
            pack, ending = build_index(frames, self._generation)
        self._start_pack()
        self.packs += 1
        return SealedPack(pack, frames, [*parts, ending])

    def _put(self, pack: SealedPack) -> None:
        self._db.store.put(pack.name, pack.parts)
        self.written(pack)

    def written(self, pack: SealedPack) -> None:
        """Add a pack to the index, because it is in the store."""
        self._db.index.add(pack.name, pack.size, pack.locations, self._generation)
        self.names.add(pack.name)

    def last(self) -> SealedPack | None:
        """The only pack, for the caller to write together with a snapshot.

        Where there are more of them, there is nothing left for the caller: all are durable.
        """
        if self.packs:
            self.finish()
            return None
        return self._seal() if self._frames else None

    def finish(self) -> None:
        """Write what is left; when this returns, all of it is durable."""
        if self._frames:
            self._flush()
        self._puts.finish()

    def close(self) -> None:
        """End the threads."""
        self._puts.close()
