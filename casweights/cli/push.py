"""``casweights push``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_ref
from casweights.cli._transfer import EXITS, move_versions, transfer_options
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("push", *EXITS, store="The store to send from")
@click.argument("target")
@click.argument("refs", metavar="[REF]...", nargs=-1, shell_complete=complete_ref)
@transfer_options
@click.option("--create", is_flag=True, help="Make the store TARGET if it does not exist.")
def command(session: Session, target: str, refs: tuple[str, ...], **options: bool) -> None:
    """Send versions to another store.

    TARGET is a store, named as for --store. Each REF is a branch or tag, by default all of them;
    an ID or main~2 sends a version without naming it. Versions keep their IDs, and only content
    that TARGET does not have is sent. A branch that has diverged in TARGET is not moved. If a push
    fails or is interrupted, repeat it to continue.

    \b
    Examples:
      casweights push /mnt/backup/models
      casweights push /mnt/shared/models main v1.0 --create
      casweights push hf://buckets/me/weights v1.0 --shallow
    """
    move_versions(session.out, session.location, target, refs, **options)
