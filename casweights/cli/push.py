"""``casweights push``, and what the other verbs between two stores share with it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._text import count, short, size
from casweights.cli._verb import verb
from casweights.cli.init import _open_or_create
from casweights.config import StoreConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.cli._output import Line, Output
    from casweights.cli._session import Session
    from casweights.database import Database
    from casweights.events import TransferStats
    from casweights.repository import Repository

    Move = Callable[[Database, Database], TransferStats]

EXITS = (Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)


@verb("push", *EXITS)
@click.argument("target")
@click.argument("refs", metavar="[REF]...", nargs=-1, shell_complete=complete_ref)
@click.option("--force", is_flag=True, help="Move branches of TARGET that went another way, too.")
@click.option("--create", is_flag=True, help="Make the store TARGET, if there is none.")
def command(
    session: Session, target: str, refs: tuple[str, ...], force: bool, create: bool
) -> None:
    """Bring versions to another store.

    REFs are branches and tags, by default all. Only what TARGET does not have is written, and
    every version keeps its ID. A branch that has gone another way in TARGET is not moved. A push
    that fails or is interrupted can be repeated, and goes on from there.

    \b
    Examples:
      casweights push /mnt/backup/models
      casweights push /mnt/shared/models main v1.0 --create
    """
    move_versions(
        session.out,
        session.location,
        target,
        lambda here, there: _push(here, there, refs, force=force),
        create=create,
    )


def _push(source: Database, target: Database, refs: Sequence[str], *, force: bool) -> TransferStats:
    from casweights.transfer import push

    return push(source, target, refs or None, force=force)


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
    from casweights.repository import open_repository

    with ExitStack() as stack:
        here = stack.enter_context(open_repository(source))
        about = {} if wanted is None else {"id": here.resolve(wanted)}
        if create:
            config = StoreConfig(digest=here.config.digest, chunk_size=here.config.chunk_size)
            _open_or_create(target, config)
        there = stack.enter_context(open_repository(target, reporter=Results(out)))
        stats = move(here._db, there._db)
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
