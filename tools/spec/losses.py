"""List what a store records as lost, by docs/format.md alone; see `reader`."""

import re
from pathlib import Path
from typing import NamedTuple

import msgpack
import xxhash

from tools.spec.chunks import need, split
from tools.spec.reader import unseal

NAME = re.compile(r"[0-9a-f]{64}-[0-9a-f]{16}")
MAX_LOSS = 268_439_552
FIRST, LAST = -(2**63), 2**63 - 1


class Loss(NamedTuple):
    snapshot: str
    manifest: bool  # lost, and with it everything else
    chunks: list[bytes]


def losses(store: Path) -> list[Loss]:
    """Return all losses; objects that were moved to `lost/` are passed over."""
    paths = sorted(path for path in (store / "lost").glob("*") if path.is_file())
    return [read_loss(store, f"lost/{path.name}") for path in paths]


def read_loss(store: Path, name: str) -> Loss:
    need(bool(NAME.fullmatch(name.removeprefix("lost/"))), f"{name} has no valid name")
    fields = msgpack.unpackb(unseal(store, name, b"l", MAX_LOSS))
    need(isinstance(fields, dict), f"{name} is not a map")
    keys = {"snapshot": bytes, "manifest": bool, "digest_size": int, "chunks": bytes, "time": int}
    for key, kind in keys.items():
        need(type(fields.get(key)) is kind, f"{name}: malformed {key}")
    need(len(fields["snapshot"]) == 32, f"{name}: malformed snapshot")
    need(fields["digest_size"] in (16, 32), f"{name}: malformed digest_size")
    need(FIRST <= fields["time"] <= LAST, f"{name}: its time is out of range")
    chunks = split(fields["chunks"], fields["digest_size"], f"{name}: its chunks")
    need(fields["manifest"] or bool(chunks), f"{name} names nothing that is lost")
    check = xxhash.xxh3_64_hexdigest(bytes([fields["manifest"]]) + fields["chunks"])
    need(name == f"lost/{fields['snapshot'].hex()}-{check}", f"{name} has another name")
    return Loss(fields["snapshot"].hex(), fields["manifest"], chunks)
