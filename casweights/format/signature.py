"""The signature of a version: samples of its tensors, as values and as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import msgpack
import numpy as np

from casweights.format.dtypes import DTYPES
from casweights.format.envelope import corrupt
from casweights.format.features import coarse_row, features
from casweights.format.sampling import MAX_ELEMENTS, Grid, count
from casweights.format.signatures import Entry, check_content
from casweights.format.unpack import MALFORMED, Unpacker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from casweights.format.features import Features
    from casweights.format.sampling import Samples
    from casweights.format.signatures import Row
    from casweights.ids import SnapshotId

MAX_GRIDS = 1 << 16  # distinct ones of a signature


@dataclass(frozen=True, slots=False, eq=False)
class Signature:
    """Samples of the tensors of a version.

    Attributes:
        grids: The tensors, in the order of their files' paths and in file order.
        values: Their samples, tensor by tensor.
    """

    grids: tuple[Grid, ...]
    values: NDArray[np.uint16]

    @classmethod
    def of(cls, samples: Samples, numbers: Sequence[int] | None = None) -> Self | None:
        """Return the signature of the tensors that were sampled.

        Args:
            samples: The samples.
            numbers: Those of the tensors to take, ascending; None for all.

        Returns:
            The signature; None if not all of their samples are known, or none is sampled.
        """
        chosen = range(len(samples.tensors)) if numbers is None else numbers
        values = samples.values_of(chosen)
        if values is None or not chosen:
            return None
        return cls(tuple(samples.tensors[n].grid for n in chosen), values)

    @cached_property
    def features(self) -> Features:
        """What the version shares with its relatives."""
        return features(self.grids, self.values)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Signature)
            and self.grids == other.grids
            and np.array_equal(self.values, other.values)
        )

    def __hash__(self) -> int:
        return hash((self.grids, self.values.tobytes()))

    def entry(self, snapshot: SnapshotId) -> Entry:
        """Encode this signature, as that of a version."""
        return Entry(snapshot, coarse_row(self.features), _encode(self))


def decode_signature(data: bytes, row: Row, name: str) -> Signature:
    """Parse a signature.

    Args:
        data: Its bytes.
        row: Its row in the object.
        name: Name of the object.

    Raises:
        IntegrityError: The signature is damaged.
    """
    try:
        return _parse(check_content(data, row, name))
    except MALFORMED as error:
        raise corrupt(name, f"it has no signature of {row.snapshot}: {error}") from error


def _encode(signature: Signature) -> bytes:
    number_of = {grid: number for number, grid in enumerate(dict.fromkeys(signature.grids))}
    fields: Mapping[str, Any] = {
        "grids": [[grid.rows, grid.columns, grid.dtype.code] for grid in number_of],
        "tensors": np.array([number_of[grid] for grid in signature.grids], "<u2").tobytes(),
        "samples": signature.values.astype("<u2").tobytes(),
    }
    encoded: bytes = msgpack.packb(fields)
    return encoded


def _parse(payload: bytes) -> Signature:
    data = Unpacker(payload)
    readers: dict[str, Callable[[], Any]] = {
        "grids": lambda: [_grid(data) for _ in data.items(MAX_GRIDS)],
        "tensors": lambda: np.frombuffer(data.scalar(bytes), "<u2"),
        "samples": lambda: np.frombuffer(data.scalar(bytes), "<u2"),
    }
    fields = data.fields(readers)
    data.finish()
    table: list[Grid] = fields["grids"]
    grids = tuple(table[number] for number in fields["tensors"].tolist())
    counts = {grid: count(grid) for grid in set(grids)}
    if sum(counts[grid] for grid in grids) != len(fields["samples"]):
        raise ValueError("its samples are not those of its tensors")
    return Signature(grids, fields["samples"].astype(np.uint16))


def _grid(data: Unpacker) -> Grid:
    data.row(3)
    rows, columns, code = data.scalar(int), data.scalar(int), data.scalar(str)
    if min(rows, columns) < 1 or rows * columns > MAX_ELEMENTS:
        raise ValueError(f"a tensor has {rows} rows of {columns} elements")
    return Grid(rows, columns, DTYPES[code])
