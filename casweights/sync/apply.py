"""Prepared changes are written into live tensors: all of them, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.ids import ChunkId
    from casweights.sync.changes import Change
    from casweights.sync.fetch import Prepared
    from casweights.sync.target import Chunk, Wanted
    from casweights.system.threads import Workers


class TornError(Exception):
    """Writing broke off where it could not be taken back.

    Attributes:
        cause: Why.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def apply(
    prepared: Prepared, late: Iterator[tuple[Wanted, Change | None]], workers: Workers
) -> int:
    """Write what was prepared, and then what comes late.

    Args:
        prepared: Changes of live tensors.
        late: Further ones, see `Fetcher.stream`.
        workers: Threads for writing.

    Returns:
        How many elements were written.

    Raises:
        TornError: It ended where it could not be taken back. After any other error the tensors
            are as they were. In any case their `ids` tell what each chunk holds.
    """
    made: list[tuple[Wanted, Change | None, ChunkId | None]] = []

    def make(item: tuple[Wanted, Change | None]) -> None:
        wanted, change = item
        before = wanted.chunk.live.ids[wanted.chunk.number]
        _write(wanted.chunk, change, wanted.id)
        made.append((wanted, change, before))

    chunks = [wanted.chunk for wanted, change in prepared.changes if change]
    chunks += [wanted.chunk for wanted in prepared.late]
    try:
        try:
            for _ in workers.map(make, prepared.changes):
                pass
            first = next(late, None)  # the last moment in which a failure can be taken back
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
        for live in {id(chunk.live): chunk.live for chunk in chunks}.values():
            live.touched()
    return changed


def _write(chunk: Chunk, change: Change | None, holds: ChunkId | None) -> None:
    """Make a change; meanwhile it is not known what the chunk holds."""
    if change is not None:
        chunk.live.ids[chunk.number] = None
        chunk.live.exchange(chunk.number, change)
    chunk.live.ids[chunk.number] = holds


def _take_back(
    made: list[tuple[Wanted, Change | None, ChunkId | None]], error: BaseException
) -> None:
    """Undo what was made, the last first: tensors may share memory."""
    try:
        for wanted, change, before in reversed(made):
            _write(wanted.chunk, change, before)
    except BaseException as failure:
        raise TornError(failure) from error


def _write_late(item: tuple[Wanted, Change | None]) -> int:
    wanted, change = item
    _write(wanted.chunk, change, wanted.id)
    return change.count if change else 0
