"""Chunks out of the store: read, decode, and check before anybody sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.errors import CasweightsError, ErrorCode, IntegrityError, NotFoundError
from casweights.format import names
from casweights.format.codecs import Encoding, decode
from casweights.format.envelope import corrupt
from casweights.format.hashing import checksum

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.format.hashing import Buffer
    from casweights.format.pack import Frame, Location
    from casweights.ids import ChunkId
    from casweights.index import ChunkIndex
    from casweights.stores.base import ObjectStore


class ChunkReader:
    """Reads chunks by ID. May be used from several threads at once."""

    def __init__(
        self, store: ObjectStore, index: ChunkIndex, hasher: Callable[[Buffer], ChunkId]
    ) -> None:
        self._store = store
        self._index = index
        self._hasher = hasher

    def readinto(self, chunk: ChunkId, out: memoryview) -> None:
        """Fill `out` with a chunk, and check it.

        A frame that is gone or damaged is looked for in other packs before giving up.

        Raises:
            IntegrityError: No pack has this chunk in good order; `out` holds nothing of use.
        """
        failure: CasweightsError | None = None
        for location in self._index.locations(chunk):
            try:
                self._read_frame(location, out)
            except (IntegrityError, NotFoundError) as error:
                failure = failure or error
            else:
                return
        if isinstance(failure, IntegrityError):
            self._index.distrust(chunk, failure)
            raise failure
        raise IntegrityError(
            ErrorCode.MISSING_CHUNK, f"no pack holds the chunk {chunk}"
        ) from failure

    def _read_frame(self, location: Location, out: memoryview) -> None:
        frame, name = location.frame, names.pack_name(location.pack)
        if frame.raw_size != len(out):
            raise damaged_frame(name, frame, f"it claims {frame.raw_size} bytes")
        if (frame.encoding, frame.size, frame.base) == (Encoding.RAW, frame.raw_size, None):
            self._store.readinto(name, frame.offset, out)
        else:
            payload = self._store.get(name, frame.offset, frame.size)
            decode_frame(frame, payload, out, name)
        if self._hasher(out) != frame.chunk:
            raise damaged_frame(name, frame, "its bytes do not match the chunk's ID")


def decode_frame(frame: Frame, payload: bytes, out: memoryview, pack_name: str) -> None:
    """Check a frame's stored bytes and decode them into `out`.

    Raises:
        IntegrityError: They are damaged or do not decode.
    """
    if checksum(payload) != frame.checksum:
        raise damaged_frame(pack_name, frame, "its checksum does not match")
    if frame.base is not None:
        raise damaged_frame(pack_name, frame, "it has a base, which its encoding does not use")
    try:
        decode(frame.encoding, payload, out)
    except ValueError as error:
        raise damaged_frame(pack_name, frame, str(error)) from error


def damaged_frame(pack_name: str, frame: Frame, why: str) -> IntegrityError:
    """The error for a damaged frame: names pack, place and chunk."""
    return corrupt(pack_name, f"the frame at byte {frame.offset}, chunk {frame.chunk}: {why}")
