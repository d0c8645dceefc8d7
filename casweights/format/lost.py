"""Losses: objects that record which chunks of a version a store has lost.

The name says which version it is, so that a listing tells the versions that are known to be lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack

from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.fields import split_ids
from casweights.format.file_entry import MAX_EXPANDED_SIZE
from casweights.format.hashing import DIGEST_SIZES, checksum
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.ids import ChunkId

MAX_LOSS = MAX_EXPANDED_SIZE + 4096  # bytes of an object: the IDs of all chunks of a version
_TIMES = range(-(1 << 63), 1 << 63)  # microseconds
_NAME = re.compile(re.escape(names.LOST) + r"([0-9a-f]{64})-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a store has lost of a version.

    Attributes:
        snapshot: The version.
        manifest: Whether its manifest is lost, so that nothing else is known of it.
        chunks: The lost chunks. If some of them are headers or lists of chunks, others may be lost
            that only these name.
        time: Time at which this was found, in microseconds since 1970-01-01 00:00 UTC.
    """

    snapshot: SnapshotId
    manifest: bool
    chunks: tuple[ChunkId, ...]
    time: int


def loss_name(loss: Loss) -> str:
    """Return the object name of a loss. It is the same for the same chunks at any time."""
    content = bytes([loss.manifest]) + b"".join(loss.chunks)
    return f"{names.LOST}{loss.snapshot}-{checksum(content).hex()}"


def parse_loss_name(name: str) -> SnapshotId:
    """Return the version that a loss with this name is about.

    Raises:
        IntegrityError: `name` is not the name of a loss.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise corrupt(name, "its name is not that of a loss")
    return SnapshotId.from_hex(match[1])


def encode_loss(loss: Loss) -> bytes:
    """Return the object that contains a loss."""
    fields = {
        "snapshot": loss.snapshot,
        "manifest": loss.manifest,
        "digest_size": len(loss.chunks[0]) if loss.chunks else max(DIGEST_SIZES.values()),
        "chunks": b"".join(loss.chunks),
        "time": loss.time,
    }
    encoded: bytes = msgpack.packb(fields)
    return seal(ObjectKind.LOSS, encoded)


def decode_loss(data: bytes, name: str) -> Loss:
    """Parse the object of a loss.

    Args:
        data: The object.
        name: Its name in the store.

    Raises:
        IntegrityError: The object is damaged, or its content and its name disagree.
        UnsupportedError: A newer casweights wrote it.
    """
    payload = unseal(ObjectKind.LOSS, data, name)
    try:
        found = _parse(payload)
    except MALFORMED as error:
        raise corrupt(name, f"it is not a loss: {error}") from error
    if loss_name(found) != name:
        raise corrupt(name, "its content and its name disagree")
    return found


def _parse(payload: bytes) -> Loss:
    data = Unpacker(payload)
    readers: dict[str, Callable[[], Any]] = {
        "snapshot": lambda: data.scalar(bytes),
        "manifest": lambda: data.scalar(bool),
        "digest_size": lambda: data.scalar(int),
        "chunks": lambda: data.scalar(bytes),
        "time": lambda: data.scalar(int),
    }
    fields = data.fields(readers)
    data.finish()
    size = fields["digest_size"]
    if size not in DIGEST_SIZES.values() or fields["time"] not in _TIMES:
        raise ValueError("its IDs have no valid size, or its time is out of range")
    chunks = split_ids(fields["chunks"], size)
    if not (chunks or fields["manifest"]):
        raise ValueError("it names nothing that is lost")
    return Loss(
        snapshot=SnapshotId(fields["snapshot"]),
        manifest=fields["manifest"],
        chunks=chunks,
        time=fields["time"],
    )
