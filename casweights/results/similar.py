"""What `Repository.similar` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.ids import SnapshotId


@dataclass(frozen=True, slots=True)
class SimilarTensor:
    """A tensor, and the one of another version that it is like.

    Attributes:
        file: Path of its file.
        tensor: Its name; None for a file that is not safetensors.
        other_file: Path of the other tensor's file.
        other_tensor: The other tensor's name.
        nbytes: Predicted bytes of the difference.
    """

    file: str
    tensor: str | None
    other_file: str
    other_tensor: str | None
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarVersion:
    """A version that another one resembles.

    Attributes:
        snapshot: Its ID.
        nbytes: Predicted bytes of the other one, stored as differences from this version.
        whole_bytes: Predicted bytes of the other one without it.
        count: Number of tensors that were compared; of large models, not all are.
        tensors: Those that have their like in this version.
    """

    snapshot: SnapshotId
    nbytes: int
    whole_bytes: int
    count: int
    tensors: tuple[SimilarTensor, ...]
