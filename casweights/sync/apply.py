"""Writing prepared changes into live tensors: all of them, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.ids import ChunkId
    from casweights.sync.changes import ChunkRef, ElementChange
    from casweights.sync.fetch import Prepared
    from casweights.sync.live import LiveTensor
    from casweights.sync.target import Wanted
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
    prepared: Prepared, late: Iterator[tuple[Wanted, ElementChange | None]], workers: Workers
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
            unchanged. In both cases `LiveTensor.ids` says what each chunk holds.
    """
    made: list[tuple[Wanted, ElementChange | None, ChunkId | None]] = []

    def make(item: tuple[Wanted, ElementChange | None]) -> None:
        wanted, change = item
        before = wanted.chunk.tensor.ids[wanted.chunk.number]
        _write(wanted.chunk, change, wanted.id)
        made.append((wanted, change, before))

    chunks = [wanted.chunk for wanted, change in prepared.changes if change]
    chunks += [wanted.chunk for wanted in prepared.late]
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


def _write(
    chunk: ChunkRef[LiveTensor], change: ElementChange | None, holds: ChunkId | None
) -> None:
    """Make a change of a chunk, and set the chunk's ID to that of its new content, `holds`.

    During the change the ID is None, so that a failure leaves the content marked as unknown.
    """
    if change is not None:
        chunk.tensor.ids[chunk.number] = None
        chunk.tensor.exchange(chunk.number, change)
    chunk.tensor.ids[chunk.number] = holds


def _take_back(
    made: list[tuple[Wanted, ElementChange | None, ChunkId | None]], error: BaseException
) -> None:
    """Undo changes, the last one first because tensors may share memory.

    Args:
        made: Each chunk with its change, which now holds the former elements, and its former ID.
        error: The error that stopped the writing.

    Raises:
        TornError: Undoing failed, too.
    """
    try:
        for wanted, change, before in reversed(made):
            _write(wanted.chunk, change, before)
    except BaseException as failure:
        raise TornError(failure) from error


def _write_late(item: tuple[Wanted, ElementChange | None]) -> int:
    """Make a late change; return the number of elements written."""
    wanted, change = item
    _write(wanted.chunk, change, wanted.id)
    return change.count if change else 0
