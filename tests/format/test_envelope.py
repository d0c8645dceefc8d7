"""The frame around small objects."""

from __future__ import annotations

import pytest

from casweights.errors import ErrorCode, IntegrityError, UnsupportedError
from casweights.format.envelope import FORMAT_VERSION, Kind, prefix, seal, unseal
from casweights.format.hashing import checksum

PAYLOAD = b"some payload"


@pytest.mark.parametrize("kind", Kind)
def test_roundtrip(kind: Kind) -> None:
    for payload in (b"", PAYLOAD, bytes(10_000)):
        assert unseal(kind, seal(kind, payload), "name") == payload


def test_every_byte() -> None:
    assert prefix(Kind.REF) == b"caswr\x01\0\0"
    assert seal(Kind.REF, b"x") == b"caswr\x01\0\0x" + checksum(b"caswr\x01\0\0x")


def test_another_kind() -> None:
    with pytest.raises(IntegrityError, match="name is damaged: it is an object of another kind"):
        unseal(Kind.SNAPSHOT, seal(Kind.REF, PAYLOAD), "name")


def test_every_flipped_bit_is_found() -> None:
    data = seal(Kind.REF, PAYLOAD)
    for n in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[n // 8] ^= 1 << n % 8
        with pytest.raises(IntegrityError, match="name") as caught:
            unseal(Kind.REF, bytes(damaged), "name")
        assert caught.value.code is ErrorCode.CORRUPT_OBJECT


def test_every_truncation_is_found() -> None:
    data = seal(Kind.REF, PAYLOAD)
    for n in range(len(data)):
        with pytest.raises(IntegrityError):
            unseal(Kind.REF, data[:n], "name")


def test_a_newer_version() -> None:
    """Intact, so that "damaged" would be wrong to say."""
    body = b"caswr" + bytes((FORMAT_VERSION + 1, 0, 0)) + PAYLOAD
    with pytest.raises(UnsupportedError, match="upgrade casweights") as caught:
        unseal(Kind.REF, body + checksum(body), "name")
    assert caught.value.code is ErrorCode.NEWER_FORMAT
