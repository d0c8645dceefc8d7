"""``casweights show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._output import Span, fields, to_json
from casweights.cli._text import binary_size, count, moment, size
from casweights.cli._verb import verb
from casweights.cli._versions import (
    Names,
    lineage_row,
    names_spans,
    origin_text,
    version_row,
)
from casweights.config import DEFAULT_BRANCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.cli._output import Line, Row
    from casweights.cli._session import Session


@verb("show", Exit.NO_STORE, Exit.INTEGRITY)
@click.argument("ref", default=DEFAULT_BRANCH, shell_complete=complete_ref)
def command(session: Session, ref: str) -> None:
    """Show the origin and the contents of a version.

    It lists the versions whose content, or differences from it, make up this one, and the share of
    each, if that is not its first parent alone. REF is main by default.
    """
    with session.open() as repository:
        snapshot = repository.snapshot(ref)
        names = Names(repository)
        row = version_row(snapshot, names)
        row["lineage"] = lineage_row(repository.lineage(snapshot), names)
    row["digest"] = snapshot.config.digest
    row["chunk_size"] = snapshot.config.chunk_size
    row["chunks"] = sum(len(file.chunks) for file in snapshot.files)
    session.out.record(row, _lines(row), essential="id")


def _lines(row: Row) -> Iterator[Line]:
    yield [Span(str(row["id"]), "yellow"), Span(" "), *names_spans(row)]
    contents = [count(row[noun + "s"], noun) for noun in ("file", "tensor", "chunk")]
    yield from fields(
        [
            *(("parent", str(parent)) for parent in row["parents"]),
            *(("made", origin_text(origin)) for origin in row["lineage"]),
            ("time", moment(row["time"], seconds=True)),
            ("author", row["author"]),
            ("size", f"{size(row['size'])} in {', '.join(contents)}"),
            ("chunks", f"up to {binary_size(row['chunk_size'])}, {row['digest']}"),
            *(("metadata", f"{key} = {to_json(row['metadata'][key])}") for key in row["metadata"]),
        ]
    )
    if row["message"].strip():
        yield ""
        yield from (f"    {line}" for line in row["message"].strip().splitlines())
