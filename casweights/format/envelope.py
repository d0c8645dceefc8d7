"""Seal small objects: a prefix with kind and format version, and a checksum at the end."""

from __future__ import annotations

from enum import Enum

from casweights.errors import ErrorCode, IntegrityError, UnsupportedError
from casweights.format.hashing import CHECKSUM_SIZE, checksum

FORMAT_VERSION = 2  # readers refuse every other version
MAX_GENERATION = 2**32 - 1  # of packs, archives and segments; only forged ones come near it
PREFIX_SIZE = 8  # bytes: magic, kind, version
_MAGIC = b"casw"


class ObjectKind(Enum):
    """The type of an object; the value is the fifth byte of its prefix."""

    PACK = b"p"
    SNAPSHOT = b"s"
    REF = b"r"
    FINDING = b"d"
    LOSS = b"l"
    SEGMENT = b"i"
    ARCHIVE = b"v"
    EXPIRED = b"e"
    POLICY = b"k"
    COLLECTION = b"c"
    SIGNATURES = b"g"


def prefix(kind: ObjectKind) -> bytes:
    """Return the first 8 bytes of an object: magic, kind, format version, two zero bytes."""
    return _MAGIC + kind.value + bytes((FORMAT_VERSION, 0, 0))


def check_version(version: object, name: str) -> None:
    """Refuse an object that another version of the format describes.

    Args:
        version: Format version of the object; anything, if a store file claims it.
        name: Its name in the store, for error messages.

    Raises:
        UnsupportedError: `version` is not `FORMAT_VERSION`.
    """
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{name} has format version {version}, which this casweights no longer reads (it reads "
            f"version {FORMAT_VERSION}): check the versions out with the casweights that wrote "
            "them, and commit them to a new store",
        )
    if version != FORMAT_VERSION:
        raise UnsupportedError(
            ErrorCode.NEWER_FORMAT,
            f"{name} has format version {version}, and this casweights reads version "
            f"{FORMAT_VERSION}: upgrade casweights",
        )


def seal(kind: ObjectKind, payload: bytes) -> bytes:
    """Return the object with this payload: prefix, payload, XXH3-64 of both."""
    body = prefix(kind) + payload
    return body + checksum(body)


def unseal(kind: ObjectKind, data: bytes, name: str) -> bytes:
    """Check an object and return its payload.

    Args:
        kind: The kind that the object must have.
        data: The object.
        name: Its name in the store, for error messages.

    Raises:
        IntegrityError: The object is damaged or not of this kind.
        UnsupportedError: It is intact, but a newer casweights wrote it.
    """
    # The checksum comes first: a damaged version byte must not look like a newer format.
    body, stored = data[:-CHECKSUM_SIZE], data[-CHECKSUM_SIZE:]
    if len(body) < PREFIX_SIZE or checksum(body) != stored:
        raise corrupt(name, "its checksum does not match")
    check_kind(kind, body, name)
    check_version(body[5], name)
    return body[PREFIX_SIZE:]


def check_kind(kind: ObjectKind, data: bytes, name: str) -> None:
    """Refuse an object whose first bytes are those of another kind.

    Raises:
        IntegrityError: `data` does not begin with the magic and the kind.
    """
    if data[:5] != _MAGIC + kind.value:
        raise corrupt(name, "it is an object of another kind")


def corrupt(name: str, why: str) -> IntegrityError:
    """Return the error for a damaged object, with its name and the reason."""
    return IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{name} is damaged: {why}")


def check_generation(generation: int) -> None:
    """Refuse to write an object of a generation that readers refuse.

    Args:
        generation: One more than the highest of the objects that it replaces.

    Raises:
        IntegrityError: There is no such generation.
    """
    if generation > MAX_GENERATION:
        raise IntegrityError(
            ErrorCode.CORRUPT_OBJECT,
            f"the store has an object of generation {MAX_GENERATION}, the last one there is, so it "
            "was forged, and nothing can replace it: push the versions to a new store",
        )
