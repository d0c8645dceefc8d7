"""Names for the shell to complete: of local stores only, lest a Tab wait for a network."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem

from casweights.cli._session import Session
from casweights.errors import CasweightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import click

    from casweights.repository import Repository


def complete_ref(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Branches and tags."""
    return _complete(ctx, incomplete, lambda repository: repository.branches() | repository.tags())


def complete_branch(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Branches."""
    return _complete(ctx, incomplete, lambda repository: repository.branches())


def complete_tag(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Tags."""
    return _complete(ctx, incomplete, lambda repository: repository.tags())


def complete_path(_ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders; `click.Path` would also ask the system for them, which fails for some."""
    return [CompletionItem(incomplete, type="file")]


def _complete(
    ctx: click.Context, incomplete: str, names: Callable[[Repository], Iterable[str]]
) -> list[str]:
    session = ctx.ensure_object(Session)
    with suppress(CasweightsError, OSError):
        if "://" not in session.location.removeprefix("file://"):
            with session.open() as repository:
                return sorted(name for name in names(repository) if name.startswith(incomplete))
    return []
