"""Checks segments: whether they list the chunks of the packs that they cover, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.database.segments import Segment, open_segment
from casweights.errors import CasweightsError, IntegrityError, NotFoundError
from casweights.format.envelope import corrupt
from casweights.format.segment import split_rows
from casweights.format.segment_rows import KEY_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casweights.ids import PackId
    from casweights.stores.base import ObjectInfo, ObjectStore

_BUCKETS_AT_ONCE = 4096  # about 5 MiB of rows


def check_segment(
    store: ObjectStore, info: ObjectInfo, chunks: Mapping[PackId, set[bytes]]
) -> CasweightsError | None:
    """Read a whole segment, and compare it with the packs that it covers.

    Args:
        store: The store.
        info: The segment's name and size.
        chunks: For each pack that is readable, the beginnings of its chunk IDs, as in rows.

    Returns:
        What is wrong with it; None if it is sound.

    Raises:
        StoreError: The store could not be read.
    """
    segment = open_segment(store, info)
    if not isinstance(segment, Segment):
        return segment
    try:
        _check(segment, chunks)
    except (IntegrityError, NotFoundError) as error:
        return error
    return None


def _check(segment: Segment, chunks: Mapping[PackId, set[bytes]]) -> None:
    segment.check_start()
    index = segment.index
    counts: dict[PackId, int] = {}
    before, buckets = b"", 1 << index.bits
    for first in range(0, buckets, _BUCKETS_AT_ONCE):
        last = min(first + _BUCKETS_AT_ONCE, buckets) - 1
        for row in split_rows(segment.rows(first, last)):
            pack, key = index.pack(row), row[:KEY_SIZE]
            if row <= before or not first <= index.bucket(key) <= last:
                raise corrupt(index.name, "its rows are not in order")
            if pack in chunks and key not in chunks[pack]:
                raise corrupt(index.name, f"it lists a chunk that pack {pack} does not contain")
            counts[pack] = counts.get(pack, 0) + 1
            before = row
    for pack, claimed in index.packs:
        rows = counts.get(pack, 0)
        if rows != claimed or (pack in chunks and rows != len(chunks[pack])):
            raise corrupt(index.name, f"it lists {rows} of the chunks of pack {pack}")
