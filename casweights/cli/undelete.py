"""``casweights undelete``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_deleted
from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._text import short
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session


@verb("undelete", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY)
@click.argument("name", shell_complete=complete_deleted)
@click.option("--as", "as_name", metavar="NAME", help="Another name, if the old one is in use.")
def command(session: Session, name: str, as_name: str | None) -> None:
    """Bring a deleted branch or tag back.

    It names its last version again. `branch --deleted` and `tag --deleted` list what was deleted.
    If a branch and a tag of one name were, write heads/NAME or tags/NAME.

    \b
    Examples:
      casweights undelete sft
      casweights undelete tags/v1.0 --as v1.0-old
    """
    with session.open() as repository:
        snapshot = repository.undelete(name, as_name)
    restored = as_name or name.removeprefix("heads/").removeprefix("tags/")
    session.out.record(
        {"name": restored, "id": snapshot},
        [[Span(short(snapshot), "yellow"), Span("  is "), Span(restored, "green"), Span(" again")]],
        essential="id",
    )
