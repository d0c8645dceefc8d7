"""``casweights similar``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._output import Column
from casweights.cli._text import short, size
from casweights.cli._verb import verb
from casweights.cli._versions import Names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.cli._session import Session
    from casweights.repository import Repository
    from casweights.results import SimilarVersion


@verb("similar", Exit.NO_STORE, Exit.INTEGRITY)
@click.argument("source", metavar="PATH|REF", shell_complete=complete_ref)
@click.option(
    "-n",
    "limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="At most N versions.",
)
def command(session: Session, source: str, limit: int) -> None:
    """List the versions that files, or a version, resemble most.

    Versions are compared by a few samples of each tensor, whatever its name, so none of them is
    read. Those that may be bases have samples: the first of each branch, tagged ones, and each
    64th. SIZE is what the files would probably take as differences from the version, and SHARE the
    same as a share of what they would take alone.

    \b
    Examples:
      casweights similar ./my-finetune
      casweights similar tuned
    """
    with session.open() as repository:
        path = Path(source)
        found = repository.similar(path if path.exists() else source, limit=limit)
        rows = list(_rows(repository, found))
    columns = [
        Column("id", short, color="yellow"),
        Column("size", size, right=True),
        Column("share", _percent, right=True),
        Column("tensors", _tensors, right=True),
        Column("names", ", ".join),
    ]
    session.out.table(rows, columns, essential="id")


def _rows(repository: Repository, found: Sequence[SimilarVersion]) -> Iterator[dict[str, Any]]:
    names = Names(repository)
    for one in found:
        yield {
            "id": one.snapshot,
            "size": one.nbytes,
            "share": one.nbytes / max(one.whole_bytes, 1),
            "tensors": [
                {
                    "file": like.file,
                    "tensor": like.tensor,
                    "other_file": like.other_file,
                    "other_tensor": like.other_tensor,
                    "size": like.nbytes,
                }
                for like in one.tensors
            ],
            "compared": one.count,
            "names": [*names.branches(one.snapshot), *names.tags(one.snapshot)],
        }


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _tensors(found: Sequence[dict[str, Any]]) -> str:
    return str(len(found))
