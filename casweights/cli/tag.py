"""``casweights tag``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_ref, complete_tag
from casweights.cli._errors import Exit
from casweights.cli._names import deleted, list_deleted, list_names, named
from casweights.cli._verb import verb
from casweights.config import DEFAULT_BRANCH

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("tag", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY)
@click.argument("name", required=False, shell_complete=complete_tag)
@click.argument("ref", required=False, shell_complete=complete_ref)
@click.option("--delete", is_flag=True, help="Delete the tag NAME, but not its version.")
@click.option("--deleted", "gone", is_flag=True, help="List the tags that were deleted.")
def command(session: Session, name: str | None, ref: str | None, delete: bool, gone: bool) -> None:
    """List tags, or make one: a name for a version that never moves.

    Without NAME, list all tags. With NAME, make a tag at the version REF, by default main.
    `casweights undelete` brings a deleted tag back.

    \b
    Examples:
      casweights tag
      casweights tag v1.0
      casweights tag v0.9 main~3
      casweights tag v0.9 --delete
    """
    if delete and (name is None or ref is not None):
        raise click.UsageError("--delete needs a NAME and nothing else")
    if gone and (name is not None or delete):
        raise click.UsageError("--deleted lists all deleted tags: leave out everything else")
    with session.open() as repository:
        if gone:
            list_deleted(session.out, repository, "tags/")
        elif name is None:
            list_names(session.out, repository, repository.tags())
        elif delete:
            repository.delete_tag(name)
            deleted(session.out, "tag", name)
        else:
            named(session.out, "tag", name, repository.tag(name, ref or DEFAULT_BRANCH))
