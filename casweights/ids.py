"""Identities: digests with a type, so that a pack's is never taken for a chunk's."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Self


class Digest(bytes):
    """A digest: its raw bytes, printed as lowercase hexadecimal."""

    __slots__ = ()
    sizes: ClassVar[tuple[int, ...]] = (32,)

    def __new__(cls, value: bytes) -> Self:
        if len(value) not in cls.sizes:
            raise ValueError(
                f"a {cls.__name__} has {' or '.join(map(str, cls.sizes))} bytes, not {len(value)}"
            )
        return super().__new__(cls, value)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """The inverse of ``str(digest)``.

        Raises:
            ValueError: `text` is not hexadecimal or has the wrong length.
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
    """Digest of a chunk's raw bytes: 32 bytes for BLAKE3, 16 for xxh3-128."""

    __slots__ = ()
    sizes = (16, 32)


class SnapshotId(Digest):
    """BLAKE3 digest of a manifest; commits to every byte of the version."""

    __slots__ = ()


class PackId(Digest):
    """BLAKE3 digest of a pack's index."""

    __slots__ = ()


class Suspect(NamedTuple):
    """Where damage was found.

    Attributes:
        pack: The pack.
        offset: Where in it the damaged frame begins; None if it is the pack as a whole.
    """

    pack: PackId
    offset: int | None
