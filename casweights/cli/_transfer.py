"""What the verbs between two stores share."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._session import open_store
from casweights.cli._text import count, short, size
from casweights.cli.init import open_or_create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.cli._output import Line, Output
    from casweights.repository import Repository
    from casweights.results import TransferStats

EXITS = (Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)


def transfer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that `push` and `pull` share."""
    for option in (
        click.option("--force", is_flag=True, help="Move branches that went another way, too."),
        click.option("--shallow", is_flag=True, help="Leave out the versions before these."),
        click.option("--all", "unnamed", is_flag=True, help="Versions without a name, too."),
    ):
        command = option(command)
    return command


def move_versions(
    out: Output,
    source: str,
    target: str,
    refs: tuple[str, ...],
    *,
    create: bool,
    shallow: bool,
    unnamed: bool,
    force: bool,
) -> None:
    """Open two stores, bring versions from one to the other, and tell about it.

    Args:
        out: Where to tell.
        source: Where the versions are.
        target: Where they go.
        refs: What to bring; everything that has a name if there are none.
        create: Make the target, if there is none.
        shallow: Leave out the versions before these.
        unnamed: Bring all other versions, too.
        force: Move branches whatever they point to.
    """
    if unnamed and (refs or shallow):
        raise click.UsageError("--all brings every version: leave out REF and --shallow")
    with ExitStack() as stack:
        here = stack.enter_context(open_store(source))
        for ref in refs:
            here.resolve(ref)  # before the target is made
        if create:
            open_or_create(target, replace(here.config, refs=None))
        there = stack.enter_context(open_store(target, reporter=Results(out)))
        stats = here.push(there, refs or None, history=not shallow, unnamed=unnamed, force=force)
        out.summary(_fields(here, there, stats), _lines(there, stats))


def _fields(source: Repository, target: Repository, stats: TransferStats) -> dict[str, Any]:
    return {
        "source": source.url,
        "target": target.url,
        "versions": stats.snapshots,
        "packs": stats.packs,
        "moved_bytes": stats.nbytes,
        "refs": stats.refs,
        "tips": stats.tips,
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
