"""``casweights undelete``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_deleted
from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._text import count, short, size
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session
    from casweights.repository import Repository


@verb("undelete", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY)
@click.argument("name", shell_complete=complete_deleted)
@click.option(
    "--as", "as_name", metavar="NAME", help="Another name, if the old one is in use, or for an ID."
)
def command(session: Session, name: str, as_name: str | None) -> None:
    """Bring back a deleted branch or tag, or what was set aside.

    It names its last version again. `branch --deleted` and `tag --deleted` list what was deleted.
    If a branch and a tag of one name were, write heads/NAME or tags/NAME.

    NAME can also be the ID of a version, or the first digits of it. The version needs a name, or a
    later gc sets it aside again: --as NAME makes a branch at it, --as tags/NAME a tag.

    NAME can also be the digits of a collection, which gc shows. Its versions get no names.

    \b
    Examples:
      casweights undelete sft
      casweights undelete tags/v1.0 --as v1.0-old
      casweights undelete 1f0c9a22 --as found
    """
    with session.open() as repository:
        is_collection = re.fullmatch("(replaced-)?[0-9a-f]{16}", name) is not None
        if is_collection and as_name is None and name not in _deleted(repository):
            _bring_back(session, repository, name)
            return
        snapshot = repository.undelete(name, as_name)
    restored = (as_name or name).removeprefix("heads/").removeprefix("tags/")
    again = "" if as_name else " again"
    session.out.record(
        {"name": restored, "id": snapshot},
        [[Span(short(snapshot), "yellow"), Span("  is "), Span(restored, "green"), Span(again)]],
        essential="id",
    )


def _deleted(repository: Repository) -> set[str]:
    """Return the names of the branches and tags that were deleted."""
    return {name.partition("/")[2] for name in repository.deleted()}


def _bring_back(session: Session, repository: Repository, collection: str) -> None:
    from casweights.format.collection import REPLACED

    done = repository.undelete_collection(collection)
    session.out.record(
        {
            "collection": collection,
            "versions": list(done.versions),
            "objects": done.objects,
            "bytes": done.nbytes,
        },
        [
            [
                Span(
                    f"{count(len(done.versions), 'version')} in {count(done.objects, 'object')} of "
                    f"{size(done.nbytes)} brought back"
                )
            ]
        ],
        essential="versions",
    )
    if done.versions and not collection.startswith(REPLACED):
        session.out.hint(
            "those that no branch and no tag needs are set aside again later: `casweights branch "
            "NAME ID` or `casweights tag NAME ID` keeps one"
        )
