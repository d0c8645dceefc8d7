"""``casweights copy``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._transfer import EXITS, move_versions
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("copy", *EXITS)
@click.argument("source")
@click.argument("target")
def command(session: Session, source: str, target: str) -> None:
    """Bring everything to another store.

    TARGET is made if there is no store. Only what it does not have is written. A copy that fails
    or is interrupted can be repeated, and goes on from there.

    \b
    Examples:
      casweights copy .casweights /mnt/backup/models
    """
    if session.store is not None:
        raise click.UsageError("SOURCE and TARGET say which stores: leave out --store")
    move_versions(session.out, source, target, lambda here, there: here.copy(there), create=True)
