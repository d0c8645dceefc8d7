"""The seal of small objects."""

from __future__ import annotations

import pytest

from casweights.errors import ErrorCode, IntegrityError, UnsupportedError
from casweights.format.envelope import (
    FORMAT_VERSION,
    ObjectKind,
    prefix,
    seal,
    unseal,
)
from casweights.format.hashing import checksum

PAYLOAD = b"some payload"


@pytest.mark.parametrize("kind", ObjectKind)
def test_unseal_returns_the_sealed_payload(kind: ObjectKind) -> None:
    for payload in (b"", PAYLOAD, bytes(10_000)):
        assert unseal(kind, seal(kind, payload), "name") == payload


def test_seal_writes_the_specified_bytes() -> None:
    assert prefix(ObjectKind.REF) == b"caswr\x02\0\0"
    assert seal(ObjectKind.REF, b"x") == b"caswr\x02\0\0x" + checksum(b"caswr\x02\0\0x")


def test_an_object_of_another_kind_is_refused() -> None:
    with pytest.raises(IntegrityError, match="name is damaged: it is an object of another kind"):
        unseal(ObjectKind.SNAPSHOT, seal(ObjectKind.REF, PAYLOAD), "name")


def test_every_flipped_bit_is_found() -> None:
    data = seal(ObjectKind.REF, PAYLOAD)
    for n in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[n // 8] ^= 1 << n % 8
        with pytest.raises(IntegrityError, match="name") as caught:
            unseal(ObjectKind.REF, bytes(damaged), "name")
        assert caught.value.code is ErrorCode.CORRUPT_OBJECT


def test_every_truncation_is_found() -> None:
    data = seal(ObjectKind.REF, PAYLOAD)
    for n in range(len(data)):
        with pytest.raises(IntegrityError):
            unseal(ObjectKind.REF, data[:n], "name")


def test_an_older_version_is_unsupported_and_says_what_to_do() -> None:
    body = b"caswr" + bytes((FORMAT_VERSION - 1, 0, 0)) + PAYLOAD
    with pytest.raises(UnsupportedError, match="commit them to a new store") as caught:
        unseal(ObjectKind.REF, body + checksum(body), "name")
    assert caught.value.code is ErrorCode.UNSUPPORTED


def test_a_newer_version_is_unsupported_and_not_damaged() -> None:
    """The object is intact, so the error must not call it damaged."""
    body = b"caswr" + bytes((FORMAT_VERSION + 1, 0, 0)) + PAYLOAD
    with pytest.raises(UnsupportedError, match="upgrade casweights") as caught:
        unseal(ObjectKind.REF, body + checksum(body), "name")
    assert caught.value.code is ErrorCode.NEWER_FORMAT
