"""Rewriting: chunks of a version that are encoded again, with the chunks to build on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from casweights.errors import ErrorCode, IntegrityError
from casweights.format.codecs import decode
from casweights.format.derived import decode_derived
from casweights.format.layout import BYTES, Piece
from casweights.format.pack import Location
from casweights.ids import PackId
from casweights.operations.base_chunks import structure_places
from casweights.system.buffers import is_equal, uninitialized

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from casweights.database.cache import ChunkCache
    from casweights.database.reader import ChunkReader, LocalFirstReader
    from casweights.format.manifest import Snapshot
    from casweights.format.pack import EncodedFrame
    from casweights.ids import ChunkId
    from casweights.operations.bases import Bases
    from casweights.operations.derivations import Derivation
    from casweights.operations.differences import DifferenceEncoder

_UNWRITTEN = PackId(bytes(32))  # stands for the pack of a frame whose pack is not written yet


class Rewrite(NamedTuple):
    """A chunk to encode again, its place in its version, and the chunk or chunks to build on."""

    chunk: ChunkId
    piece: Piece
    base: ChunkId | None
    is_structure: bool = False
    made: Derivation | None = None

    @property
    def bases(self) -> Iterable[ChunkId]:
        """The chunks to build on."""
        base = () if self.base is None else (self.base,)
        return [*base, *(() if self.made is None else self.made.chunks)]

    def encode(
        self,
        encoder: DifferenceEncoder,
        reader: ChunkReader,
        cache: ChunkCache,
        *,
        plain: bool,
        step: EncodedFrame | None = None,
    ) -> list[EncodedFrame]:
        """Return the new frames of the chunk, of which each was decoded.

        The old frames are deleted, so nothing is left to chance.

        Args:
            encoder: Chooses the frames.
            reader: Reads the chunk.
            cache: Chunks in memory, to which this one is added: it may be the base of another.
            plain: Whether the old frames have a chain without derived ones. The new frames then
                have one, too: others may be made from the chunk, or be made from it at this moment.
            step: The difference from the base, if it is known, and was decoded.

        Raises:
            IntegrityError: The chunk cannot be rebuilt, or a new frame of it is wrong.
            StoreError: The store could not be read.
        """
        raw = uninitialized(self.piece.nbytes)
        # A new reader each time: an older one does not know what was added to the cache since.
        local = reader.with_local(cache)
        local.readinto(self.chunk, raw)
        if self.is_structure:
            frames = encoder.encode_structure(raw, self.base)
        else:
            if self.made is not None and not plain:
                frames = encoder.encode_derived(raw, self.piece, self.made, self.base)
            else:
                frames = encoder.encode(raw, self.piece, self.base, plain=plain, step=step)
            cache.put(self.chunk, raw)
        for frame in frames:
            if frame is not step:
                self._check(frame, raw, local)
        return frames

    def _check(self, frame: EncodedFrame, raw: memoryview, reader: LocalFirstReader) -> None:
        out = uninitialized(len(raw))
        if frame.roots:
            roots = [reader.read(root.chunk, root.raw_size) for root in frame.roots]
            decode_derived(frame.payload, roots, out)
        else:
            if frame.base is not None:
                reader.readinto(frame.base, out)
            decode(frame.encoding, frame.payload, out)
        self.check(out, raw)

    def check(self, decoded: memoryview, raw: memoryview) -> None:
        """Compare what a new frame of the chunk decodes to.

        Raises:
            IntegrityError: It is something else than the chunk.
        """
        if not is_equal(decoded, raw):
            raise IntegrityError(
                ErrorCode.CORRUPT_OBJECT,
                f"the chunk {self.chunk} was encoded again, and the result decodes to something "
                "else: nothing was deleted. The memory of this machine may be faulty",
            )

    def planned(self, frames: Sequence[EncodedFrame]) -> list[Location]:
        """Return new frames as those of a pack, before it is written."""
        made = (new.of(self.chunk, self.piece.nbytes) for new in frames)
        return [Location(_UNWRITTEN, frame) for frame in made]


def rewrites(version: Snapshot, bases: Bases, done: Container[ChunkId]) -> Iterator[Rewrite]:
    """Yield the chunks of a version, except for those that are done; some twice.

    Args:
        version: The version.
        bases: The chunks to build on, by place.
        done: The chunks to leave out.
    """
    config = version.config
    for file in version.files:
        for chunk, piece in file.pieces(config.chunk_size):
            if chunk not in done:
                base = bases.find(file.path, piece)
                made = bases.derivation(file.path, piece, base)
                if base is None and made is not None:
                    base = bases.nearest(file.path, piece)
                yield Rewrite(chunk, piece, base, made=made)
        row = file.row(config)
        structure = row.structure(config)
        for place, (chunk, size) in zip(structure_places(row), structure, strict=True):
            if chunk not in done:
                base = bases.find_structure(file.path, place)
                yield Rewrite(chunk, Piece(0, size, BYTES), base, is_structure=True)
