"""States on their way from the caller to a version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from casweights.errors import CasweightsError, ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from casweights.commit import EncodedVersion
    from casweights.sync.mirror import Mirror, Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A state that was handed over.

    Attributes:
        mirror: Where the state is kept; None where it is encoded already.
        scan: What changed in the mirror since the state before.
        encoded: The version, where there is no mirror to encode it from later.
        number: The caller's number for it.
        message: The caller's message.
        metadata: The caller's metadata.
        skipped: Numbers of the states that were left out in favour of this one.
        scan_seconds: What finding the changes took.
        encode_seconds: What encoding took, if it is done.
    """

    mirror: Mirror | None = None
    scan: Scan | None = None
    encoded: EncodedVersion | None = None
    number: int | None
    message: str
    metadata: dict[str, Any]
    skipped: tuple[int | None, ...] = ()
    scan_seconds: float = 0.0
    encode_seconds: float = 0.0

    def instead_of(self, other: Step) -> Step:
        """This state in the place of the one right before it, which is left out."""
        scan = self.scan
        if self.mirror is not None and self.scan is not None and other.scan is not None:
            scan = self.mirror.merge(other.scan, self.scan)
        skipped = (*other.skipped, other.number, *self.skipped)
        seconds = self.scan_seconds + other.scan_seconds
        return replace(self, scan=scan, skipped=skipped, scan_seconds=seconds)

    def torn(self) -> CasweightsError:
        """The error for a state of which nothing is left."""
        return InvalidInputError(
            ErrorCode.SOURCE_CHANGED,
            f"step {self.number} was not published: the copy that was kept of it was overwritten "
            "by a call that failed. Publish again",
        )
