"""``casweights checkout``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_path, complete_ref
from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._text import count, short, size
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session
    from casweights.results import CheckoutStats


@verb("checkout", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)
@click.argument("ref", shell_complete=complete_ref)
@click.argument("directory", metavar="DIR", shell_complete=complete_path)
@click.option(
    "--include",
    metavar="PATTERN",
    multiple=True,
    help="Write only files whose path matches, and from other safetensors files only tensors whose "
    "name matches. May be repeated.",
)
@click.option("--delete", is_flag=True, help="Delete the other files in DIR.")
@click.option(
    "--force", is_flag=True, help="Overwrite and delete files even if no version contains them."
)
def command(
    session: Session,
    ref: str,
    directory: str,
    include: tuple[str, ...],
    delete: bool,
    force: bool,
) -> None:
    """Write the files of a version to a directory, bit for bit.

    Files in DIR that are the same already stay. Files with other content are overwritten only if
    some version of the store contains that content. All files are complete and verified before the
    first one appears under its name.

    \b
    Examples:
      casweights checkout main my-model
      casweights checkout v1~2 part --include 'config.json' --include 'model.layers.0.*'
    """
    results = Results(session.out)
    with session.open(results) as repository:
        # Without --include, click passes an empty tuple, which would select nothing.
        snapshot = repository.checkout(
            ref, directory, include=include or None, delete=delete, overwrite=force
        )
    session.out.summary(
        {"id": snapshot.id, "directory": directory, **_counts(results.checkout)},
        [
            [Span(short(snapshot.id), "yellow"), Span(f"  is in {directory}")],
            _sentence(results.checkout, delete=delete),
        ],
        essential="id",
    )


def _counts(stats: CheckoutStats) -> dict[str, int]:
    return {
        "files": stats.files,
        "written_files": stats.written_files,
        "deleted_files": stats.deleted_files,
        "total_bytes": stats.total_bytes,
        "fetched_bytes": stats.fetched_bytes,
    }


def _sentence(stats: CheckoutStats, *, delete: bool) -> str:
    done = [f"{stats.written_files} written"]
    if delete:
        done.append(f"{stats.deleted_files} deleted")
    done.append(f"{size(stats.fetched_bytes)} read from the store")
    return f"{count(stats.files, 'file')}, {size(stats.total_bytes)}: {', '.join(done)}"
