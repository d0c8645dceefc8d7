"""``casweights pull``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._session import DEFAULT_FOLDER
from casweights.cli._transfer import EXITS, move_versions
from casweights.cli._verb import verb
from casweights.errors import NotFoundError

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("pull", *EXITS)
@click.argument("source")
@click.argument("refs", metavar="[REF]...", nargs=-1)
@click.option("--force", is_flag=True, help="Move branches that went another way here, too.")
@click.option("--create", is_flag=True, help="Make a store like SOURCE here, if there is none.")
def command(
    session: Session, source: str, refs: tuple[str, ...], force: bool, create: bool
) -> None:
    """Bring versions from another store.

    REFs are branches and tags of SOURCE, by default all. Only what is not here is read, and every
    version keeps its ID. A branch that has gone another way here is not moved. A pull that fails
    or is interrupted can be repeated, and goes on from there.

    \b
    Examples:
      casweights pull /mnt/shared/models
      casweights pull /mnt/shared/models main v1.0 --create
    """
    move_versions(
        session.out,
        source,
        _location(session, create=create),
        lambda there, here: there.push(here, refs or None, force=force),
        create=create,
    )


def _location(session: Session, *, create: bool) -> str:
    try:
        return session.location
    except NotFoundError:
        if not create:
            raise
        return DEFAULT_FOLDER
