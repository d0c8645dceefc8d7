"""Encode and decode ``casweights.json``: the settings that are fixed when a store is created."""

from __future__ import annotations

import json
import re

from casweights.config import StoreConfig
from casweights.errors import InvalidInputError
from casweights.format.envelope import FORMAT_VERSION, check_version, corrupt
from casweights.format.fields import expect
from casweights.format.hashing import checksum
from casweights.format.names import CONFIG

MAX_STORE_FILE = 1 << 16  # bytes that are read at most; a valid file has a few hundred
_STORE_ID = re.compile("[0-9a-f]{32}")


def encode_store_file(config: StoreConfig, store_id: str) -> bytes:
    """Return the content of the file for a new store.

    Args:
        config: The store's settings.
        store_id: 32 random hexadecimal digits.
    """
    fields: dict[str, object] = {
        "format": FORMAT_VERSION,
        "store_id": store_id,
        "digest": config.digest,
        "chunk_size": config.chunk_size,
    }
    if config.refs is not None:
        fields["refs"] = config.refs
    if config.standalone:
        fields["standalone"] = True
    return _with_checksum(fields)


def _with_checksum(fields: dict[str, object]) -> bytes:
    text = json.dumps(fields, indent=2)
    return json.dumps({**fields, "checksum": checksum(text.encode()).hex()}, indent=2).encode()


def decode_store_file(data: bytes) -> tuple[StoreConfig, str]:
    """Parse the content of ``casweights.json``.

    Returns:
        The store's settings and its ID.

    Raises:
        IntegrityError: The file is damaged.
        UnsupportedError: A newer casweights made the store.
    """
    try:
        fields = json.loads(data)
        fields.pop("checksum")
        intact = _with_checksum(fields) == data
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise corrupt(CONFIG, str(error)) from error
    if not intact:
        raise corrupt(CONFIG, "its checksum does not match")
    check_version(fields.get("format"), CONFIG)
    try:
        refs = fields.get("refs")
        config = StoreConfig(
            digest=fields["digest"],
            chunk_size=fields["chunk_size"],
            refs=None if refs is None else expect(refs, str),
            standalone=expect(fields.get("standalone", False), bool),
        )
        store_id = expect(fields["store_id"], str)
    except (InvalidInputError, KeyError, TypeError) as error:
        raise corrupt(CONFIG, str(error)) from error
    if not _STORE_ID.fullmatch(store_id):
        raise corrupt(CONFIG, f"{store_id!r} is not a store ID")
    return config, store_id
