"""``casweights log``."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._verb import verb
from casweights.cli._versions import Names, version_line, version_row
from casweights.config import DEFAULT_BRANCH

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("log", Exit.NO_STORE, Exit.INTEGRITY)
@click.argument("ref", default=DEFAULT_BRANCH, shell_complete=complete_ref)
@click.option("-n", "limit", metavar="N", type=click.IntRange(min=1), help="At most N versions.")
def command(session: Session, ref: str, limit: int | None) -> None:
    """List a version and those before it, newest first.

    A REF, here and everywhere, is a branch (the default is main), a tag, an ID or the first digits
    of one, each optionally followed by ~N for the Nth version before it.

    \b
    Examples:
      casweights log
      casweights log -n 5 sft~10
    """
    with session.open() as repository:
        names = Names(repository)
        session.out.listing(
            (version_row(snapshot, names) for snapshot in islice(repository.log(ref), limit)),
            lambda row: [version_line(row)],
            essential="id",
        )
