"""States on their way from the caller to a version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from casweights.content.states import STATE_FILE
from casweights.errors import CasweightsError, ErrorCode, InvalidInputError
from casweights.results import PublishStats

if TYPE_CHECKING:
    from casweights.operations.commit import EncodedVersion
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

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return "a version" if self.number is None else f"step {self.number}"

    def instead_of(self, other: Step) -> Step:
        """This state in the place of the one right before it, which is left out."""
        scan = self.scan
        if self.mirror is not None and self.scan is not None and other.scan is not None:
            scan = self.mirror.merge(other.scan, self.scan)
        skipped = (*other.skipped, other.number, *self.skipped)
        seconds = self.scan_seconds + other.scan_seconds
        return replace(self, scan=scan, skipped=skipped, scan_seconds=seconds)

    def stats(
        self,
        encoded: EncodedVersion,
        scan: Scan | None,
        encode_seconds: float,
        upload_seconds: float,
    ) -> PublishStats:
        """What its publication took."""
        header = next(file.header for file in encoded.snapshot.files if file.path == STATE_FILE)
        infos = header.tensors if header else ()
        return PublishStats(
            snapshot=encoded.snapshot.id,
            step=self.number,
            skipped=self.skipped,
            total_bytes=encoded.snapshot.size,
            stored_bytes=encoded.stats.stored_bytes,
            elements=sum(info.nbytes // info.dtype.width for info in infos),
            changed_elements=scan.changed if scan else None,
            scan_seconds=self.scan_seconds,
            encode_seconds=encode_seconds,
            upload_seconds=upload_seconds,
        )

    def torn(self) -> CasweightsError:
        """The error for a state of which nothing is left."""
        return InvalidInputError(
            ErrorCode.SOURCE_CHANGED,
            f"{self.name} was not published: the copy that was kept of it was overwritten "
            "by a call that failed. Publish again",
        )


class Failure(NamedTuple):
    """A state that did not become a version.

    Attributes:
        name: The state's name.
        error: Why.
    """

    name: str
    error: BaseException
