"""``casweights push``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_ref
from casweights.cli._transfer import EXITS, move_versions
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session


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
        lambda here, there: here.push(there, refs or None, force=force),
        create=create,
    )
