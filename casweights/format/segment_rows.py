"""Rows of segments, many at once: twenty bytes of memory each, where an object takes a hundred."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casweights.system.buffers import Buffer

KEY_SIZE = 16  # bytes of a chunk ID in a row: no two chunks of a store begin with the same ones
NUMBER = struct.Struct("<I")
ROW_SIZE = KEY_SIZE + NUMBER.size  # bytes


def make_rows(chunks: Iterable[bytes], number: int) -> bytes:
    """Return the rows of chunks in the pack with this number."""
    end = NUMBER.pack(number)
    return b"".join(chunk[:KEY_SIZE] + end for chunk in chunks)


def in_order(parts: Iterable[Buffer]) -> bytes:
    """Return rows in the order of their bytes, each once."""
    import numpy as np  # as in `columns`

    # Zeros at the end are cut off where numpy compares, which changes nothing for equal lengths.
    joined = np.frombuffer(b"".join(parts), f"S{ROW_SIZE}")
    ordered: bytes = np.unique(joined).tobytes()
    return ordered


def between(rows: Buffer, first: bytes, last: bytes) -> bytes:
    """Return those rows whose first two bytes are in a range."""
    low, high = (int.from_bytes(bound, "big") for bound in (first, last))
    leading = leading_numbers(rows)
    chosen: bytes = _table(rows)[(leading >= low) & (leading <= high)].tobytes()
    return chosen


def renumbered(rows: Buffer, numbers: Sequence[int | None]) -> bytes:
    """Return rows with the new numbers of their packs; those of packs without one are left out.

    Args:
        rows: The rows.
        numbers: The new number of each pack.

    Raises:
        IndexError: A row is of another pack.
    """
    import numpy as np  # as in `columns`

    given = np.array([-1 if number is None else number for number in numbers], np.int64)
    new, table = given[pack_numbers(rows)], _table(rows).copy()
    table[:, KEY_SIZE:] = new.astype("<u4").view(np.uint8).reshape(-1, NUMBER.size)
    kept: bytes = table[new >= 0].tobytes()
    return kept


def leading_numbers(rows: Buffer) -> Any:
    """Return the number that the first two bytes of each row are, as an array."""
    return _table(rows)[:, :2].copy().view(">u2").ravel()


def pack_numbers(rows: Buffer) -> Any:
    """Return the number of the pack of each row, as an array."""
    return _table(rows)[:, KEY_SIZE:].copy().view("<u4").ravel()


def _table(rows: Buffer) -> Any:
    """Return the bytes of rows, as an array with a line for each."""
    import numpy as np  # as in `columns`

    return np.frombuffer(rows, np.uint8).reshape(-1, ROW_SIZE)
