"""Changes of a version's tensors, for hosts with their own layout of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from casweights.sync.changes import POSITION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.sync.changes import ElementChange
    from casweights.sync.fetch import Prepared
    from casweights.sync.live import LiveTensor


@dataclass(frozen=True, slots=True)
class Patch:
    """New values of a tensor, in the coordinates of the version.

    Attributes:
        name: The tensor's plain name in the version, without prefixes of wrappers.
        dtype: The tensor's dtype.
        shape: The tensor's shape, in elements as torch counts them.
        indices: Positions of the values in the flat tensor, in C order, ascending, as an int64
            tensor on the CPU; None if the patch replaces the whole tensor.
        values: One element for each index, as a flat tensor on the CPU. Without indices, the
            whole tensor in its shape, on the CPU.
    """

    name: str
    dtype: torch.dtype
    shape: torch.Size
    indices: torch.Tensor | None
    values: torch.Tensor


def to_patches(prepared: Prepared, chunk_size: int) -> list[Patch]:
    """Return patches of the tensors for which every change has positions.

    Call it before the changes are made: making a change replaces its new values with the old ones.
    """
    changes: dict[int, list[tuple[int, ElementChange]]] = {}
    for wanted, change in prepared.changes:
        if change is not None:
            changes.setdefault(id(wanted.chunk.tensor), []).append((wanted.chunk.number, change))
    whole = {id(wanted.chunk.tensor) for group in prepared.late for wanted in group}
    whole |= {key for key, of in changes.items() if any(c.positions is None for _, c in of)}
    return [
        _sparse(fit.live, fit.name, changes[id(fit.live)], chunk_size)
        for fit in prepared.fits
        if id(fit.live) in changes and id(fit.live) not in whole
    ]


def whole_tensors(prepared: Prepared, patched: set[str]) -> Iterator[Patch]:
    """Yield patches with the whole content of the other changed tensors.

    Call it after the changes are made.

    Args:
        prepared: The changes.
        patched: Names of the tensors that already have a patch.
    """
    changed = {id(wanted.chunk.tensor) for wanted, change in prepared.changes if change}
    changed |= {id(wanted.chunk.tensor) for group in prepared.late for wanted in group}
    for fit in prepared.fits:
        if id(fit.live) in changed and fit.name not in patched:
            tensor = fit.live.tensor
            yield Patch(fit.name, tensor.dtype, tensor.shape, None, tensor.detach().cpu())


def _sparse(
    live: LiveTensor, name: str, changes: list[tuple[int, ElementChange]], chunk_size: int
) -> Patch:
    """Return one patch with all changes of a tensor, given by the numbers of its chunks."""
    indices, values = [], bytearray()
    for number, change in sorted(changes, key=lambda item: item[0]):
        local = np.frombuffer(change.positions or b"", POSITION).astype(np.int64)
        indices.append(local + number * chunk_size // live.width)
        values += change.values
    flat = torch.from_numpy(np.concatenate(indices))
    tensor = live.tensor
    return Patch(
        name, tensor.dtype, tensor.shape, flat, torch.frombuffer(values, dtype=tensor.dtype)
    )
