"""``casweights push``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_ref
from casweights.cli._transfer import EXITS, move_versions, transfer_options
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("push", *EXITS)
@click.argument("target")
@click.argument("refs", metavar="[REF]...", nargs=-1, shell_complete=complete_ref)
@transfer_options
@click.option("--create", is_flag=True, help="Make the store TARGET, if there is none.")
def command(session: Session, target: str, refs: tuple[str, ...], **options: bool) -> None:
    """Bring versions to another store.

    REFs are branches and tags, by default all; an ID or main~2 brings a version without a name.
    Only what TARGET does not have is written, and every version keeps its ID. A branch that has
    gone another way in TARGET is not moved. A push that fails or is interrupted can be repeated,
    and goes on from there.

    \b
    Examples:
      casweights push /mnt/backup/models
      casweights push /mnt/shared/models main v1.0 --create
      casweights push hf://buckets/me/weights v1.0 --shallow
    """
    move_versions(session.out, session.location, target, refs, **options)
