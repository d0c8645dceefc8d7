"""Prepared changes are written into live tensors: all of them, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.parallel import Workers
    from casweights.sync.changes import Change
    from casweights.sync.fetch import Prepared
    from casweights.sync.target import Wanted


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
        TornError: It ended among the late changes; `ids` of the tensors tell what each chunk
            holds. After any other error the tensors are as they were.
    """
    made: list[tuple[Wanted, Change]] = []

    def make(item: tuple[Wanted, Change | None]) -> None:
        wanted, change = item
        if change is not None:
            wanted.chunk.live.exchange(wanted.chunk.number, change)
            made.append((wanted, change))

    try:
        for _ in workers.map(make, prepared.changes):
            pass
        first = next(late, None)  # the last moment in which a failure can be taken back
    except BaseException:
        for wanted, change in made:
            wanted.chunk.live.exchange(wanted.chunk.number, change)
        raise
    for wanted, _ in prepared.changes:
        wanted.chunk.live.ids[wanted.chunk.number] = wanted.id
    changed = sum(change.count for _, change in made)
    try:
        if first is not None:
            changed += _write_late(first)
            changed += sum(_write_late(item) for item in late)
    except BaseException as error:
        raise TornError(error) from error
    finally:
        chunks = [wanted.chunk for wanted, _ in made] + [wanted.chunk for wanted in prepared.late]
        for live in {id(chunk.live): chunk.live for chunk in chunks}.values():
            live.touched()
    return changed


def _write_late(item: tuple[Wanted, Change | None]) -> int:
    wanted, change = item
    live, number = wanted.chunk
    if change is not None:
        live.ids[number] = None
        live.exchange(number, change)
    live.ids[number] = wanted.id
    return change.count if change else 0
