"""``casweights pull``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._session import DEFAULT_FOLDER
from casweights.cli._transfer import EXITS, move_versions, transfer_options
from casweights.cli._verb import verb
from casweights.errors import NotFoundError

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("pull", *EXITS)
@click.argument("source")
@click.argument("refs", metavar="[REF]...", nargs=-1)
@transfer_options
@click.option("--create", is_flag=True, help="Make a store like SOURCE here, if there is none.")
def command(
    session: Session, source: str, refs: tuple[str, ...], create: bool, **options: bool
) -> None:
    """Bring versions from another store.

    REFs are branches and tags of SOURCE, by default all; an ID or main~2 brings a version without
    a name. Only what is not here is read, and every version keeps its ID. A branch that has gone
    another way here is not moved. A pull that fails or is interrupted can be repeated, and goes on
    from there.

    \b
    Examples:
      casweights pull /mnt/shared/models
      casweights pull /mnt/shared/models main v1.0 --create
      casweights pull hf://buckets/me/weights v1.0 --shallow --create
    """
    here = _location(session, create=create)
    move_versions(session.out, source, here, refs, create=create, **options)


def _location(session: Session, *, create: bool) -> str:
    try:
        return session.location
    except NotFoundError:
        if not create:
            raise
        return DEFAULT_FOLDER
