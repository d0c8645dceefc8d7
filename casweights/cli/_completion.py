"""Completion of names in the shell.

Only local stores are asked for names, so that a Tab never waits for a network.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from casweights.cli._session import Session, is_local
from casweights.errors import CasweightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import click

    from casweights.repository import Repository


def complete_ref(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the branches and tags that begin with the incomplete word."""
    return _complete(ctx, incomplete, lambda repository: repository.branches() | repository.tags())


def complete_branch(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the branches that begin with the incomplete word."""
    return _complete(ctx, incomplete, lambda repository: repository.branches())


def complete_tag(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the tags that begin with the incomplete word."""
    return _complete(ctx, incomplete, lambda repository: repository.tags())


def complete_deleted(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the deleted branches and tags that begin with the incomplete word."""
    return _complete(
        ctx,
        incomplete,
        lambda repository: {name.partition("/")[2] for name in repository.deleted()},
    )


def complete_path(_ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete files and folders."""
    # `click.Path` would also look the path up in the file system, which may refuse it.
    return [CompletionItem(incomplete, type="file")]


def _complete(
    ctx: click.Context, incomplete: str, names: Callable[[Repository], Iterable[str]]
) -> list[str]:
    session = ctx.ensure_object(Session)
    # The shell would show an error in the middle of the line that the user types.
    with suppress(CasweightsError, OSError):
        if is_local(session.location):
            with session.open() as repository:
                return sorted(name for name in names(repository) if name.startswith(incomplete))
    return []
