"""What the verbs between two stores share."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._session import open_store
from casweights.cli._text import count, short, size
from casweights.cli.init import open_or_create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.cli._output import Line, Output
    from casweights.events import TransferStats
    from casweights.repository import Repository

    Move = Callable[[Repository, Repository], TransferStats]

EXITS = (Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)


def move_versions(
    out: Output,
    source: str,
    target: str,
    move: Move,
    *,
    create: bool,
    wanted: str | None = None,
) -> None:
    """Open two stores, bring versions from one to the other, and tell about it.

    Args:
        out: Where to tell.
        source: Where the versions are.
        target: Where they go.
        move: Brings them.
        create: Make the target, if there is none.
        wanted: The version that all is about, if it is one.
    """
    with ExitStack() as stack:
        here = stack.enter_context(open_store(source))
        if wanted is not None:
            here.resolve(wanted)  # before the target is made
        if create:
            open_or_create(target, replace(here.config, refs=None))
        there = stack.enter_context(open_store(target, reporter=Results(out)))
        stats = move(here, there)
        about = {} if wanted is None else {"id": stats.version}
        out.summary(
            {**about, **_fields(here, there, stats)},
            _lines(there, stats),
            essential="id" if about else None,
        )


def _fields(source: Repository, target: Repository, stats: TransferStats) -> dict[str, Any]:
    return {
        "source": source.url,
        "target": target.url,
        "versions": stats.snapshots,
        "packs": stats.packs,
        "moved_bytes": stats.nbytes,
        "refs": stats.refs,
    }


def _lines(target: Repository, stats: TransferStats) -> Iterator[Line]:
    for ref, version in stats.refs.items():
        kind, _, name = ref.partition("/")
        what = "branch" if kind == "heads" else "tag"
        yield [Span(short(version), "yellow"), Span(f"  is {what} "), Span(name, "green")]
    if stats.snapshots:
        moved = f"{count(stats.snapshots, 'version')} and {count(stats.packs, 'pack')}"
        yield f"{moved}, {size(stats.nbytes)}, came to {target.url}"
    elif not stats.refs:
        yield f"All of it is in {target.url} already"
