"""The options and the work that `push` and `pull` share."""

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
from casweights.errors import ErrorCode, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.cli._output import Line, Output
    from casweights.repository import Repository
    from casweights.results import TransferStats

EXITS = (Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)


def transfer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that `push` and `pull` share to a command."""
    for option in (
        click.option("--force", is_flag=True, help="Also move branches that have diverged."),
        click.option("--shallow", is_flag=True, help="Leave out the history of the versions."),
        click.option("--all", "unnamed", is_flag=True, help="Also copy versions without a name."),
        click.option("--with-expired", is_flag=True, help="Also copy versions that have expired."),
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
    with_expired: bool,
    force: bool,
) -> None:
    """Open two stores, copy versions from one to the other, and report the result.

    Args:
        out: Where to report.
        source: The store with the versions.
        target: The store to copy them to.
        refs: The branches, tags and IDs to copy; empty for all branches and tags.
        create: Make the target if it does not exist.
        shallow: Leave out the history of the versions.
        unnamed: Also copy all versions without a branch or tag.
        with_expired: Also copy versions that have expired in either store.
        force: Also move branches of the target that have diverged.
    """
    if unnamed and (refs or shallow):
        raise click.UsageError("--all copies every version: leave out REF and --shallow")
    with ExitStack() as stack:
        here = stack.enter_context(open_store(source))
        for ref in refs:
            here.resolve(ref)  # a wrong ref must not leave an empty target behind
        if create:
            # Two stores cannot share a repository for refs: the target keeps its own.
            open_or_create(target, replace(here.config, refs=None))
        there = stack.enter_context(_open_target(target, Results(out)))
        stats = here.push(
            there,
            refs or None,
            history=not shallow,
            unnamed=unnamed,
            with_expired=with_expired,
            force=force,
        )
        out.summary(_fields(here, there, stats), _lines(there, stats))
        if stats.expired:
            out.hint(
                f"{there.url} had let {count(stats.expired, 'version')} of these expire: there, "
                "`casweights log --expired` lists them, and gc sets them aside when its grace time "
                "is over, but for those that get a branch (`casweights branch NAME ID`) or a tag"
            )


def _open_target(target: str, reporter: Results) -> Repository:
    try:
        return open_store(target, reporter=reporter)
    except NotFoundError as error:
        if error.code is ErrorCode.STORE_NOT_FOUND:
            error.add_note("--create makes it")
        raise


def _fields(source: Repository, target: Repository, stats: TransferStats) -> dict[str, Any]:
    return {
        "source": source.url,
        "target": target.url,
        "versions": stats.snapshots,
        "packs": stats.packs,
        "moved_bytes": stats.nbytes,
        "refs": stats.refs,
        "tips": stats.tips,
        "expired": stats.expired,
    }


def _lines(target: Repository, stats: TransferStats) -> Iterator[Line]:
    for ref, version in stats.refs.items():
        kind, _, name = ref.partition("/")
        what = "branch" if kind == "heads" else "tag"
        yield [Span(short(version), "yellow"), Span(f"  is {what} "), Span(name, "green")]
    if stats.snapshots:
        moved = f"{count(stats.snapshots, 'version')} and {count(stats.packs, 'pack')}"
        yield f"{moved}, {size(stats.nbytes)}, copied to {target.url}"
    elif not stats.refs:
        yield f"Nothing to copy: {target.url} is up to date"
