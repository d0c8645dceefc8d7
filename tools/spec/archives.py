"""Find versions in archives, by docs/format.md alone; see `reader`."""

import itertools
import struct
from pathlib import Path

import xxhash
from blake3 import blake3

from tools.spec.chunks import FAILURES, StoreError, need

FORMAT = 2
ROW = struct.Struct("<32sQI")
END = struct.Struct("<I8sI4s")  # generation, checksum, rows, magic
PREFIX = 8
MAX_ROWS = 67_108_864  # bytes


def find_archived(store: Path, snapshot: str) -> tuple[str, bytes]:
    """Return the name and the bytes of an archived snapshot object, by the ID in hex."""
    problem: Exception = StoreError(f"there is no version {snapshot}")
    for path in sorted((store / "versions").glob("*")):
        name, data = f"versions/{path.name}", path.read_bytes()
        try:
            rows = rows_of(data, name)
        except FAILURES as error:  # another archive may contain the version
            problem = error
            continue
        for found, start, size in rows:
            if found.hex() == snapshot:
                return f"snapshots/{snapshot} in {name}", data[start : start + size]
    raise problem


def rows_of(data: bytes, name: str) -> list[tuple[bytes, int, int]]:
    """Return the rows of an archive: IDs, offsets, and sizes."""
    need(len(data) >= PREFIX + END.size, f"{name} is too short")
    generation, checksum, count, magic = END.unpack_from(data, len(data) - END.size)
    end, size = len(data) - END.size, count * ROW.size
    need(magic == b"cver", f"{name} does not end like an archive")
    need(0 < size <= min(MAX_ROWS, end - PREFIX), f"{name} has {count} rows")
    covered = data[:PREFIX] + data[end - size : end] + generation.to_bytes(4, "little")
    need(xxhash.xxh3_64_digest(covered) == checksum, f"{name} is damaged")
    need(data[:5] == b"casw" + b"v", f"{name} is of another kind")
    need(data[5] == FORMAT, f"{name} has format version {data[5]}")
    need(generation >= 1, f"{name} has no generation")
    need(blake3(data).hexdigest() == name.removeprefix("versions/"), f"{name} has another ID")
    rows = list(ROW.iter_unpack(data[end - size : end]))
    for before, after in itertools.pairwise(rows):
        need(before[0] < after[0], f"{name} has rows out of order")
    for _, start, nbytes in rows:
        need(start >= PREFIX and nbytes >= 1, f"{name} has a version before its beginning")
        need(start + nbytes <= end - size, f"{name} has a version beyond its end")
    return rows
