"""Reads frames from packs, checks their stored bytes, and decodes them into chunks."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from casweights.format import names
from casweights.format.codecs import Encoding, decode, is_difference
from casweights.format.envelope import corrupt
from casweights.format.hashing import checksum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.errors import IntegrityError
    from casweights.format.pack import Location
    from casweights.stores.base import ObjectStore


class Spent:
    """Time and bytes spent on reading chunks, summed over threads.

    Attributes:
        read: Seconds spent waiting for stored bytes.
        decode: Seconds spent decoding them.
        check: Seconds spent hashing the decoded chunks.
        nbytes: Number of stored bytes read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.read = self.decode = self.check = 0.0
        self.nbytes = 0

    def add(
        self, *, read: float = 0.0, decode: float = 0.0, check: float = 0.0, nbytes: int = 0
    ) -> None:
        """Add seconds and bytes to the sums."""
        with self._lock:
            self.read += read
            self.decode += decode
            self.check += check
            self.nbytes += nbytes


def read_payload(store: ObjectStore, location: Location) -> bytes:
    """Read a frame's stored bytes and check them against the frame's checksum.

    Raises:
        NotFoundError: The pack is gone.
        IntegrityError: The bytes do not match the checksum.
    """
    frame, name = location.frame, names.pack_name(location.pack)
    payload = store.get(name, frame.offset, frame.size)
    if checksum(payload) != frame.checksum and store.forget(name):
        payload = store.get(name, frame.offset, frame.size)  # a cache may have held bad bytes
    if checksum(payload) != frame.checksum:
        raise damaged_frame(location, "its checksum does not match")
    return payload


def decode_frame(
    location: Location, payload: bytes, out: memoryview, roots: Sequence[memoryview] = ()
) -> None:
    """Decode a frame's stored bytes into `out`.

    Args:
        location: The frame.
        payload: Its stored bytes.
        out: A buffer of the chunk's raw size, which the chunk replaces. If the frame is a
            difference, it must hold the base.
        roots: The bytes of the frame's roots, if it is derived.

    Raises:
        IntegrityError: The bytes cannot be decoded, or the frame names a base or roots although
            its encoding uses none, or the other way round.
    """
    frame = location.frame
    if is_difference(frame.encoding) != (frame.base is not None):
        why = "needs a base, but it names none" if frame.base is None else "uses no base"
        raise damaged_frame(location, f"encoding {frame.encoding} {why}")
    if (frame.encoding == Encoding.DERIVED) != bool(frame.roots):
        why = "uses no roots" if frame.roots else "needs roots, but it names none"
        raise damaged_frame(location, f"encoding {frame.encoding} {why}")
    try:
        if frame.roots:
            from casweights.format.derived import decode_derived

            decode_derived(payload, roots, out)
        else:
            decode(frame.encoding, payload, out)
    except ValueError as error:
        raise damaged_frame(location, str(error)) from error


def damaged_frame(location: Location, why: str) -> IntegrityError:
    """Return the error for a damaged frame, which names its pack, its offset and its chunk."""
    frame = location.frame
    where = f"the frame at byte {frame.offset}, chunk {frame.chunk}"
    error = corrupt(names.pack_name(location.pack), f"{where}: {why}")
    error.suspect = location.suspect
    return error


def read_frame(
    store: ObjectStore,
    location: Location,
    out: memoryview,
    spent: Spent,
    roots: Sequence[memoryview] = (),
) -> None:
    """Read a frame and decode it into `out`, without a check of the result against the chunk's ID.

    Args:
        store: The store that contains the frame's pack.
        location: The frame.
        out: A buffer for the chunk, which must hold the frame's base if it has one.
        spent: The sums to which this adds its time and bytes.
        roots: The bytes of the frame's roots, if it is derived.

    Raises:
        IntegrityError: The frame is damaged.
        NotFoundError: The pack is gone.
    """
    frame, begin = location.frame, time.perf_counter()
    if frame.raw_size != len(out):
        raise damaged_frame(location, f"it claims {frame.raw_size} bytes")
    # A raw frame is read in place. Its checksum is left out, because the stored bytes are the
    # chunk, and the caller checks the chunk against its ID.
    if (frame.encoding, frame.size, frame.bases) == (Encoding.RAW, frame.raw_size, ()):
        store.readinto(names.pack_name(location.pack), frame.offset, out)
        read = time.perf_counter()
    else:
        payload = read_payload(store, location)
        read = time.perf_counter()
        decode_frame(location, payload, out, roots)
    spent.add(read=read - begin, decode=time.perf_counter() - read, nbytes=frame.size)
