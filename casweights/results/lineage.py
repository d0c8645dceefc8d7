"""What `Repository.lineage` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from casweights.ids import SnapshotId


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseVersion:
    """A version that another one was made from, as recorded where it is stored.

    Attributes:
        snapshot: Its ID. Nobody checks records of this kind, so it may be of any version, or none.
        nbytes: Bytes of the other version that are the same in this one, or differences from it.
        share: The same as a share of the other version.
        is_parent: Whether it is a declared parent, and not a base that was found or asked for.
        state: Whether the store has it.
    """

    snapshot: SnapshotId
    nbytes: int
    share: float
    is_parent: bool
    state: Literal["present", "expired", "missing"]
