"""``casweights clone``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._transfer import EXITS, move_versions
from casweights.cli._verb import verb
from casweights.config import DEFAULT_BRANCH

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("clone", *EXITS)
@click.argument("source")
@click.argument("target")
@click.argument("ref", default=DEFAULT_BRANCH)
def command(session: Session, source: str, target: str, ref: str) -> None:
    """Bring one version to another store, without those before it.

    REF is main by default. If it is a branch or a tag, TARGET has one of that name afterwards.
    TARGET is made if there is no store.

    \b
    Examples:
      casweights clone /mnt/shared/models .casweights
      casweights clone /mnt/shared/models .casweights v1.0
    """
    if session.store is not None:
        raise click.UsageError("SOURCE and TARGET say which stores: leave out --store")
    move_versions(
        session.out,
        source,
        target,
        lambda here, there: here.clone(there, ref),
        create=True,
        wanted=ref,
    )
