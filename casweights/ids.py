"""IDs: digests with a type, so that the ID of a pack is never mistaken for that of a chunk."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self


class Digest(bytes):
    """A digest: its raw bytes, shown as lowercase hexadecimal digits."""

    __slots__ = ()
    sizes: ClassVar[tuple[int, ...]] = (32,)

    def __new__(cls, value: bytes) -> Self:
        if len(value) not in cls.sizes:
            raise ValueError(
                f"{cls.__name__} must have {' or '.join(map(str, cls.sizes))} bytes, "
                f"got {len(value)}"
            )
        return bytes.__new__(cls, value)  # by its name: `super()` takes as long as the rest

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Parse hexadecimal digits: the inverse of ``str(digest)``.

        Raises:
            ValueError: `text` is not hexadecimal, or has the wrong length.
        """
        try:
            return cls(bytes.fromhex(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is not a {cls.__name__} in hexadecimal") from error

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"


class ChunkId(Digest):
    """Digest of the bytes of a chunk: 32 bytes for BLAKE3, 16 bytes for xxh3-128."""

    __slots__ = ()
    sizes = (16, 32)


class SnapshotId(Digest):
    """BLAKE3 digest of a manifest; it depends on every byte of the version."""

    __slots__ = ()


class PackId(Digest):
    """BLAKE3 digest of a pack's index."""

    __slots__ = ()


class CarriedPackId(PackId):
    """ID of the pack inside a snapshot object: the bytes of the snapshot's ID.

    It equals a `PackId` of the same bytes, as one that a finding's name contains.
    """

    __slots__ = ()


class SegmentId(Digest):
    """BLAKE3 digest of a segment's index."""

    __slots__ = ()


class ArchiveId(Digest):
    """BLAKE3 digest of the whole content of an archive of versions."""

    __slots__ = ()


class RecordId(Digest):
    """BLAKE3 digest of the whole content of a record of expired versions."""

    __slots__ = ()


class SignaturesId(Digest):
    """BLAKE3 digest of the rows of an object with the signatures of several versions."""

    __slots__ = ()


class Suspect(NamedTuple):
    """The place of damage in a store.

    Attributes:
        pack: The pack, or a segment under the ID that a pack would have.
        offset: Offset of the damaged frame in bytes; None if the whole object is damaged.
    """

    pack: PackId
    offset: int | None
