"""States on their way from `Publisher.publish` to a version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from casweights.content.states import STATE_FILE
from casweights.results import PublishStats

if TYPE_CHECKING:
    from casweights.operations.commit import EncodedVersion
    from casweights.sync.mirror import Mirror, Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The description of a state, as passed to `Publisher.publish`.

    Attributes:
        number: The caller's step number; None if none was given.
        message: The message of its version.
        metadata: The metadata of its version.
        skipped: Step numbers of the states that were left out in favour of this one.
    """

    number: int | None
    message: str
    metadata: dict[str, Any]
    skipped: tuple[int | None, ...] = ()

    @property
    def name(self) -> str:
        """The name of the state in messages."""
        return "a version" if self.number is None else f"step {self.number}"


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A state that a mirror holds, to be encoded later.

    Attributes:
        label: The description of the state.
        mirror: The mirror, which holds a copy of the state.
        scan: The changes since the state before.
        scan_seconds: Seconds spent on finding the changes.
    """

    label: Label
    mirror: Mirror
    scan: Scan
    scan_seconds: float

    def in_place_of(self, other: CapturedStep) -> CapturedStep:
        """Return this step with the changes of the step right before it, which is left out."""
        left_out = (*other.label.skipped, other.label.number)
        return replace(
            self,
            label=replace(self.label, skipped=(*left_out, *self.label.skipped)),
            scan=self.mirror.merge(other.scan, self.scan),
            scan_seconds=other.scan_seconds + self.scan_seconds,
        )


@dataclass(frozen=True, slots=True)
class EncodedStep:
    """A state that is encoded and only has to be written.

    Attributes:
        label: The description of the state.
        version: The encoded version.
        mirror: The mirror from which it was encoded; None for a publisher without a mirror.
        untried: Whether this is the first attempt to publish the changes, so that no part of the
            version can be in the store yet.
        changed: Number of elements that changed; None if they were not counted.
        scan_seconds: Seconds spent on finding the changes.
        encode_seconds: Seconds spent on encoding.
    """

    label: Label
    version: EncodedVersion
    mirror: Mirror | None = None
    untried: bool = False
    changed: int | None = None
    scan_seconds: float = 0.0
    encode_seconds: float = 0.0

    def stats(self, upload_seconds: float) -> PublishStats:
        """Return the figures of publishing this step, given the seconds of its upload."""
        snapshot = self.version.snapshot
        header = next(file.header for file in snapshot.files if file.path == STATE_FILE)
        infos = header.tensors if header else ()
        return PublishStats(
            snapshot=snapshot.id,
            step=self.label.number,
            skipped=self.label.skipped,
            total_bytes=snapshot.size,
            stored_bytes=self.version.stats.stored_bytes,
            elements=sum(info.nbytes // info.dtype.width for info in infos),
            changed_elements=self.changed,
            scan_seconds=self.scan_seconds,
            encode_seconds=self.encode_seconds,
            upload_seconds=upload_seconds,
        )


Step = CapturedStep | EncodedStep
