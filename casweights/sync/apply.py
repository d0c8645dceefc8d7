"""Writing prepared changes into live tensors: all of them, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.content.spans import Span
    from casweights.sync.changes import ElementChange
    from casweights.sync.fetch import Prepared
    from casweights.sync.live_spans import LiveSpan
    from casweights.system.threads import Workers


class TornError(Exception):
    """Writing failed and could not be undone: the tensors are a mixture of two versions.

    Attributes:
        cause: The error that stopped the writing.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def apply(
    prepared: Prepared, late: Iterator[tuple[LiveSpan, ElementChange | None]], workers: Workers
) -> int:
    """Write the prepared changes, then the late ones.

    Prepared changes are in memory, so that they can be undone. Late changes cannot: once the first
    of them is written, a failure leaves the tensors torn.

    Args:
        prepared: The changes of live tensors.
        late: Changes that are fetched while they are written, see `Fetcher.stream`. As in
            `prepared`, None stands for a chunk that already has the wanted bytes.
        workers: Threads for writing.

    Returns:
        Number of elements written.

    Raises:
        TornError: Writing failed and could not be undone. After any other error the tensors are
            unchanged. In both cases `LiveTensor.holds` says what each chunk has.
    """
    made: list[tuple[LiveSpan, ElementChange | None, Span | None]] = []

    def make(item: tuple[LiveSpan, ElementChange | None]) -> None:
        wanted, change = item
        before = wanted.chunk.tensor.holds[wanted.chunk.number]
        _write(wanted, change, wanted.span)
        made.append((wanted, change, before))

    chunks = [wanted.chunk for wanted, change in prepared.changes if change]
    chunks += [wanted.chunk for group in prepared.late for wanted in group]
    try:
        try:
            for _ in workers.map(make, prepared.changes):
                pass
            # Fetch the first late change before leaving this block: until it is written, a failure
            # can still be undone.
            first = next(late, None)
        except BaseException as error:
            _take_back(made, error)
            raise
        changed = sum(change.count for _, change, _ in made if change)
        try:
            if first is not None:
                changed += _write_late(first)
                changed += sum(_write_late(item) for item in late)
        except BaseException as error:
            raise TornError(error) from error
    finally:
        # Also after a failure: autograd must not use values that were saved before the writing.
        for live in {id(chunk.tensor): chunk.tensor for chunk in chunks}.values():
            live.touched()
    return changed


def _write(wanted: LiveSpan, change: ElementChange | None, holds: Span | None) -> None:
    """Make a change of a chunk, and record what the chunk holds then.

    During the change that is unknown, so that a failure leaves the content marked as unknown.
    """
    if change is not None:
        wanted.hold(None)
        wanted.chunk.tensor.exchange(wanted.chunk.number, change)
    wanted.hold(holds)


def _take_back(
    made: list[tuple[LiveSpan, ElementChange | None, Span | None]], error: BaseException
) -> None:
    """Undo changes, the last one first because tensors may share memory.

    Args:
        made: Each chunk with its change, which now holds the former elements, and what it held.
        error: The error that stopped the writing.

    Raises:
        TornError: Undoing failed, too.
    """
    try:
        for wanted, change, before in reversed(made):
            _write(wanted, change, before)
    except BaseException as failure:
        raise TornError(failure) from error


def _write_late(item: tuple[LiveSpan, ElementChange | None]) -> int:
    """Make a late change; return the number of elements written."""
    wanted, change = item
    _write(wanted, change, wanted.span)
    return change.count if change else 0
