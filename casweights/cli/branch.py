"""``casweights branch``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_branch, complete_ref
from casweights.cli._errors import Exit
from casweights.cli._names import deleted, list_names, named
from casweights.cli._verb import verb
from casweights.config import DEFAULT_BRANCH

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("branch", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY)
@click.argument("name", required=False, shell_complete=complete_branch)
@click.argument("ref", required=False, shell_complete=complete_ref)
@click.option("--force", is_flag=True, help="Move the branch NAME, if it is there already.")
@click.option("--delete", is_flag=True, help="Forget the branch NAME. Its versions stay.")
def command(session: Session, name: str | None, ref: str | None, force: bool, delete: bool) -> None:
    """List branches, or make or move one.

    REF is main by default.

    \b
    Examples:
      casweights branch
      casweights branch sft v1.0
      casweights branch sft v1.1 --force
    """
    if delete and (name is None or ref is not None or force):
        raise click.UsageError("--delete takes a NAME and nothing else")
    if force and name is None:
        raise click.UsageError("--force takes a NAME")
    with session.open() as repository:
        if name is None:
            list_names(session.out, repository, repository.branches())
        elif delete:
            repository.delete_branch(name)
            deleted(session.out, "branch", name)
        else:
            snapshot = repository.branch(name, ref or DEFAULT_BRANCH, force=force)
            named(session.out, "branch", name, snapshot)
