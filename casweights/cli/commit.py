"""``casweights commit``."""

from __future__ import annotations

import getpass
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from casweights.cli._completion import complete_branch, complete_ref
from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._text import count, short, size, subject
from casweights.cli._verb import verb
from casweights.config import DEFAULT_BRANCH, DEFAULT_EXCLUDE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.cli._output import Line
    from casweights.cli._session import Session
    from casweights.config import Compression
    from casweights.format.manifest import Snapshot
    from casweights.results import CommitStats


def _metadata(_: click.Context, param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    metadata = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE", param=param)
        try:
            metadata[key] = json.loads(text, parse_constant=_no_json)
        except ValueError:
            metadata[key] = text
    return metadata


def _no_json(constant: str) -> None:
    # NaN and Infinity are not JSON, though Python parses them: they become strings.
    raise ValueError(constant)


def _login_name() -> str:
    with suppress(OSError, KeyError, ImportError):  # a container's user may have no name
        return getpass.getuser()
    return ""


@verb("commit", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)
@click.argument("path")
@click.option("-m", "--message", default="", help="The reason for this version.")
@click.option(
    "--branch",
    default=DEFAULT_BRANCH,
    show_default=True,
    shell_complete=complete_branch,
    help="The branch to move to the new version; made if it does not exist.",
)
@click.option(
    "--parent",
    metavar="REF",
    shell_complete=complete_ref,
    help="The parent of the first version of a new branch.",
)
@click.option(
    "--base",
    metavar="REF",
    shell_complete=complete_ref,
    help="A version to store this one as differences from; it does not become a parent.",
)
@click.option(
    "--author",
    envvar="CASWEIGHTS_AUTHOR",
    default=_login_name,
    help="The author of the version.  [default: $CASWEIGHTS_AUTHOR, or the login name]",
)
@click.option(
    "--meta",
    "metadata",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_metadata,
    help="A value to store with the version: JSON if it is valid, else a string. May be repeated.",
)
@click.option(
    "--compression",
    type=click.Choice(["fast", "auto", "small"]),
    default="auto",
    show_default=True,
    help="fast stores bytes as they are, auto encodes where it pays, small searches longest.",
)
@click.option(
    "--standalone",
    is_flag=True,
    help="Store nothing as a function of other versions, such as a rounding. Costs bytes; saves "
    "them when it is read.",
)
@click.option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="Files and folders to leave out, like .git and .cache/huggingface. May be repeated.",
)
@click.option(
    "--opaque",
    metavar="PATTERN",
    multiple=True,
    help="Files to store as plain bytes, even if they are safetensors. May be repeated.",
)
def command(
    session: Session,
    path: str,
    message: str,
    branch: str,
    parent: str | None,
    base: str | None,
    author: str,
    metadata: dict[str, Any],
    compression: Compression,
    standalone: bool,
    exclude: tuple[str, ...],
    opaque: tuple[str, ...],
) -> None:
    """Store a directory or a file as a new version.

    Only content that the store does not have is written. A commit that fails or is interrupted
    changes no version; repeat it to continue.

    \b
    Examples:
      casweights commit my-model -m "first"
      casweights commit run/checkpoint-500 --branch sft --meta step=500 --exclude 'optimizer.pt'
      casweights commit merged --branch merges --base sft~3
    """
    results = Results(session.out)
    with session.open(results) as repository:
        snapshot = repository.commit(
            path,
            branch=branch,
            parent=parent,
            base=base,
            message=message,
            author=author,
            metadata=metadata,
            compression=compression,
            standalone=standalone,
            exclude=(*DEFAULT_EXCLUDE, *exclude),
            opaque=opaque,
        )
    session.out.summary(
        {
            "id": snapshot.id,
            "parents": snapshot.parents,
            "branch": branch,
            "files": len(snapshot.files),
            **_counts(results.commit),
        },
        _lines(snapshot, branch, results.commit),
        essential="id",
    )


def _counts(stats: CommitStats) -> dict[str, int]:
    return {
        "total_bytes": stats.total_bytes,
        "new_bytes": stats.new_bytes,
        "stored_bytes": stats.stored_bytes,
        "chunks": stats.chunks,
        "new_chunks": stats.new_chunks,
        "packs": stats.packs,
    }


def _lines(snapshot: Snapshot, branch: str, stats: CommitStats) -> Iterator[Line]:
    yield [
        Span(short(snapshot.id), "yellow"),
        Span("  "),
        Span(branch, "green"),
        Span(f"  {subject(snapshot.message)}"),
    ]
    new = f"{size(stats.new_bytes)} new, stored in {size(stats.stored_bytes)}"
    yield f"{count(len(snapshot.files), 'file')}, {size(stats.total_bytes)}: {new}"
