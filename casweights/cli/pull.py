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


@verb("pull", *EXITS, store="The store to fetch to")
@click.argument("source")
@click.argument("refs", metavar="[REF]...", nargs=-1)
@transfer_options
@click.option(
    "--create",
    is_flag=True,
    help="Make this store, like SOURCE, if it does not exist.",
)
def command(
    session: Session, source: str, refs: tuple[str, ...], create: bool, **options: bool
) -> None:
    """Fetch versions from another store.

    SOURCE is a store, named as for --store. Each REF is a branch or tag of SOURCE, by default all
    of them; an ID or main~2 fetches a version without naming it. Versions keep their IDs, and only
    content that this store does not have is read. A branch that has diverged here is not moved. If
    a pull fails or is interrupted, repeat it to continue.

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
        # Without a store in sight, --create makes one where `init` would.
        return DEFAULT_FOLDER
