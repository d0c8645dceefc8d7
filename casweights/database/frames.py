"""Frames out of packs: their stored bytes read and checked, and decoded into chunks."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from casweights.format import names
from casweights.format.codecs import Encoding, decode, is_difference
from casweights.format.envelope import corrupt
from casweights.format.hashing import checksum

if TYPE_CHECKING:
    from casweights.errors import IntegrityError
    from casweights.format.pack import Location
    from casweights.stores.base import ObjectStore


class Spent:
    """What reading chunks took, summed over threads.

    Attributes:
        read: Seconds of waiting for stored bytes.
        decode: Seconds of decoding them.
        check: Seconds of hashing what came out.
        nbytes: Stored bytes read.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.read = self.decode = self.check = 0.0
        self.nbytes = 0

    def add(
        self, *, read: float = 0.0, decode: float = 0.0, check: float = 0.0, nbytes: int = 0
    ) -> None:
        """Add to the sums."""
        with self._lock:
            self.read += read
            self.decode += decode
            self.check += check
            self.nbytes += nbytes


def read_payload(store: ObjectStore, location: Location) -> bytes:
    """A frame's stored bytes.

    Raises:
        NotFoundError: The pack is gone.
        IntegrityError: They do not match their checksum.
    """
    frame, name = location.frame, names.pack_name(location.pack)
    payload = store.get(name, frame.offset, frame.size)
    if checksum(payload) != frame.checksum and store.forget(name):
        payload = store.get(name, frame.offset, frame.size)  # what was remembered was to blame
    if checksum(payload) != frame.checksum:
        raise damaged_frame(location, "its checksum does not match")
    return payload


def decode_frame(location: Location, payload: bytes, out: memoryview) -> None:
    """Decode a frame's stored bytes into `out`.

    Args:
        location: The frame.
        payload: Its stored bytes.
        out: Where the chunk goes; where the frame is a difference, it holds the base.

    Raises:
        IntegrityError: They do not decode, or a base is missing or of no use.
    """
    frame = location.frame
    if is_difference(frame.encoding) != (frame.base is not None):
        has = "no base, which" if frame.base is None else "a base, which none of"
        raise damaged_frame(location, f"it has {has} its encoding takes")
    try:
        decode(frame.encoding, payload, out)
    except ValueError as error:
        raise damaged_frame(location, str(error)) from error


def damaged_frame(location: Location, why: str) -> IntegrityError:
    """The error for a damaged frame, which names its pack, its offset and its chunk."""
    frame = location.frame
    where = f"the frame at byte {frame.offset}, chunk {frame.chunk}"
    error = corrupt(names.pack_name(location.pack), f"{where}: {why}")
    error.suspect = location.suspect
    return error


def read_frame(store: ObjectStore, location: Location, out: memoryview, spent: Spent) -> None:
    """Decode a frame into `out`, which holds its base if it has one. The result is unchecked.

    Args:
        store: Where the frame's pack is.
        location: The frame.
        out: Where the chunk goes.
        spent: What this takes is added to it.

    Raises:
        IntegrityError: The frame is damaged.
        NotFoundError: The pack is gone.
    """
    frame, begin = location.frame, time.perf_counter()
    if frame.raw_size != len(out):
        raise damaged_frame(location, f"it claims {frame.raw_size} bytes")
    if (frame.encoding, frame.size, frame.base) == (Encoding.RAW, frame.raw_size, None):
        store.readinto(names.pack_name(location.pack), frame.offset, out)
        read = time.perf_counter()
    else:
        payload = read_payload(store, location)
        read = time.perf_counter()
        decode_frame(location, payload, out)
    spent.add(read=read - begin, decode=time.perf_counter() - read, nbytes=frame.size)
