"""The encoding of ``casweights.json``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from casweights.config import MiB, StoreConfig
from casweights.errors import IntegrityError, UnsupportedError
from casweights.format.hashing import checksum
from casweights.format.store_file import decode_store_file, encode_store_file

CONFIG = StoreConfig(digest="xxh3-128", chunk_size=MiB)
STORE_ID = "0123456789abcdef" * 2


def sealed(**changes: Any) -> bytes:
    """Return a store file with other values and a matching checksum."""
    fields = json.loads(encode_store_file(CONFIG, STORE_ID)) | changes
    fields = {key: value for key, value in fields.items() if value is not ... and key != "checksum"}
    digest = checksum(json.dumps(fields, indent=2).encode()).hex()
    return json.dumps(fields | {"checksum": digest}, indent=2).encode()


def test_decode_returns_the_encoded_settings() -> None:
    data = encode_store_file(CONFIG, STORE_ID)
    assert decode_store_file(data) == (CONFIG, STORE_ID)
    assert sealed() == data


def test_the_file_is_readable_json() -> None:
    fields = json.loads(encode_store_file(CONFIG, STORE_ID))
    assert fields.pop("checksum")
    assert fields == {
        "format": 2,
        "store_id": STORE_ID,
        "digest": "xxh3-128",
        "chunk_size": MiB,
    }


def test_every_changed_byte_is_found() -> None:
    data = encode_store_file(CONFIG, STORE_ID)
    for n in range(len(data)):
        damaged = data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :]
        with pytest.raises(IntegrityError, match=r"casweights\.json is damaged"):
            decode_store_file(damaged)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 50_000])
def test_other_bytes_are_not_a_store_file(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        decode_store_file(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "md5"},
        {"digest": ...},
        {"chunk_size": 1000},
        {"chunk_size": "big"},
        {"chunk_size": 4194304.0},
        {"chunk_size": True},
        {"chunk_size": 1 << 40},
        {"store_id": ...},
    ],
)
def test_invalid_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        decode_store_file(sealed(**changes))


@pytest.mark.parametrize("version", [1, 3, 0, 99, "2", None])
def test_another_format_version_is_unsupported(version: Any) -> None:
    with pytest.raises(UnsupportedError, match="format version"):
        decode_store_file(sealed(format=version))
