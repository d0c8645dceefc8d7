"""The envelope of every small object: what it is, which version, and a checksum of it all."""

from __future__ import annotations

from enum import Enum

from casweights.errors import ErrorCode, IntegrityError, UnsupportedError
from casweights.format.hashing import CHECKSUM_SIZE, checksum

FORMAT_VERSION = 1  # readers refuse a higher one
PREFIX_SIZE = 8  # bytes: magic, kind, version
_MAGIC = b"casw"


class ObjectKind(Enum):
    """What an object is: the fifth byte of its prefix."""

    PACK = b"p"
    SNAPSHOT = b"s"
    REF = b"r"
    FINDING = b"d"


def prefix(kind: ObjectKind) -> bytes:
    """The first 8 bytes of an object: magic, kind, format version, two zero bytes."""
    return _MAGIC + kind.value + bytes((FORMAT_VERSION, 0, 0))


def check_version(version: int, name: str) -> None:
    """Refuse what a newer casweights has written.

    Raises:
        UnsupportedError: `version` is not the one this code reads.
    """
    if version != FORMAT_VERSION:
        raise UnsupportedError(
            ErrorCode.NEWER_FORMAT,
            f"{name} has format version {version}, and this casweights reads version "
            f"{FORMAT_VERSION}: upgrade casweights",
        )


def seal(kind: ObjectKind, payload: bytes) -> bytes:
    """Payload to object: prefix, payload, xxh3-64 of both."""
    body = prefix(kind) + payload
    return body + checksum(body)


def unseal(kind: ObjectKind, data: bytes, name: str) -> bytes:
    """Object to payload.

    Args:
        kind: What it must be.
        data: The object.
        name: Its name in the store, for error messages.

    Raises:
        IntegrityError: The object is damaged or not of this kind.
        UnsupportedError: It is intact, but a newer casweights wrote it.
    """
    body, stored = data[:-CHECKSUM_SIZE], data[-CHECKSUM_SIZE:]
    if len(body) < PREFIX_SIZE or checksum(body) != stored:
        raise corrupt(name, "its checksum does not match")
    if body[:5] != _MAGIC + kind.value:
        raise corrupt(name, "it is an object of another kind")
    check_version(body[5], name)
    return body[PREFIX_SIZE:]


def corrupt(name: str, why: str) -> IntegrityError:
    """The error for a damaged object: names it and says what is wrong."""
    return IntegrityError(ErrorCode.CORRUPT_OBJECT, f"{name} is damaged: {why}")
