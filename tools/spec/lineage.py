"""The lineage of a version, by docs/format.md alone; see `tools.spec.reader`."""

from __future__ import annotations

from typing import Any

from tools.spec.chunks import ints, need

MAX_ORIGINS = 8


def parse_lineage(
    index: dict[str, Any], snapshot: str, version_bytes: int, name: str
) -> list[tuple[str, int]]:
    """Return the versions that frames were made from, by their IDs in hex, and the bytes of each.

    Args:
        index: The index of the version's object.
        snapshot: The version's ID, in hex.
        version_bytes: The sum of the sizes of its files.
        name: The name of its object.
    """
    if "lineage" not in index:
        return []
    listed = index["lineage"]
    need(isinstance(listed, list) and 1 <= len(listed) <= MAX_ORIGINS, f"{name}: wrong lineage")
    for row in listed:
        need(isinstance(row, list) and len(row) == 2, f"{name}: malformed lineage")
        need(isinstance(row[0], bytes) and len(row[0]) == 32, f"{name}: malformed lineage")
        ints([row[1]], 1, version_bytes, f"{name}: the bytes of its lineage")
    places = [(-nbytes, origin) for origin, nbytes in listed]
    need(places == sorted(places), f"{name}: its lineage is not in order")
    named = {origin.hex() for origin, _ in listed}
    need(len(named) == len(listed) and snapshot not in named, f"{name}: wrong IDs in its lineage")
    need(sum(nbytes for _, nbytes in listed) <= version_bytes, f"{name}: too large a lineage")
    return [(origin.hex(), nbytes) for origin, nbytes in listed]
