"""``casweights branch``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_branch, complete_ref
from casweights.cli._errors import Exit
from casweights.cli._names import deleted, list_deleted, list_names, named
from casweights.cli._text import short
from casweights.cli._verb import verb
from casweights.cli._versions import displaced_hint
from casweights.config import DEFAULT_BRANCH

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("branch", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY)
@click.argument("name", required=False, shell_complete=complete_branch)
@click.argument("ref", required=False, shell_complete=complete_ref)
@click.option("--force", is_flag=True, help="Move the branch NAME if it exists.")
@click.option("--delete", is_flag=True, help="Delete the branch NAME, but not its versions.")
@click.option("--deleted", "gone", is_flag=True, help="List the branches that were deleted.")
@click.option("--drop", is_flag=True, help="Stop listing REF as displaced from the branch NAME.")
def command(
    session: Session,
    name: str | None,
    ref: str | None,
    force: bool,
    delete: bool,
    gone: bool,
    drop: bool,
) -> None:
    """List branches, or make or move one.

    Without NAME, list all branches. With NAME, make a branch at the version REF, by default main.

    In a bucket, another writer's move may displace a version from a branch. The list shows such a
    version until a branch or tag names it, or until --drop.

    `casweights undelete` brings a deleted branch back.

    \b
    Examples:
      casweights branch
      casweights branch sft v1.0
      casweights branch sft v1.1 --force
      casweights branch sft --delete
    """
    if delete and (name is None or ref is not None or force):
        raise click.UsageError("--delete needs a NAME and nothing else")
    if force and name is None:
        raise click.UsageError("--force needs a NAME")
    if drop and (name is None or ref is None or force):
        raise click.UsageError("--drop needs a NAME, a REF and nothing else")
    if gone and (name is not None or delete):
        raise click.UsageError("--deleted lists all deleted branches: leave out everything else")
    with session.open() as repository:
        if gone:
            list_deleted(session.out, repository, "heads/")
        elif name is None:
            displaced = repository.displaced()
            list_names(session.out, repository, repository.branches(), displaced)
            displaced_hint(session.out, displaced)
        elif drop and ref is not None:
            snapshot = repository.resolve(ref)
            repository.drop_displaced(name, snapshot)
            session.out.record(
                {"name": name, "id": snapshot, "dropped": True},
                [f"{short(snapshot)} is no longer listed as displaced from branch {name}"],
            )
        elif delete:
            repository.delete_branch(name)
            deleted(session.out, "branch", name)
        else:
            snapshot = repository.branch(name, ref or DEFAULT_BRANCH, force=force)
            named(session.out, "branch", name, snapshot)
