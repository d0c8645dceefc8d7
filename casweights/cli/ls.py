"""``casweights ls``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._output import Column
from casweights.cli._text import count, size
from casweights.cli._verb import verb
from casweights.config import DEFAULT_BRANCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.cli._session import Session
    from casweights.format.manifest import Snapshot


@verb("ls", Exit.NO_STORE, Exit.INTEGRITY)
@click.argument("ref", default=DEFAULT_BRANCH, shell_complete=complete_ref)
@click.option("--tensors", is_flag=True, help="List the tensors of the safetensors files.")
def command(session: Session, ref: str, tensors: bool) -> None:
    """List the files of a version, or its tensors.

    REF is main by default.

    \b
    Examples:
      casweights ls
      casweights ls v1.0 --tensors
    """
    with session.open() as repository:
        snapshot = repository.snapshot(ref)
    columns = [Column("size", size, right=True)]
    if not tensors:
        columns += [Column("path"), Column("tensors", _tensors, color="bright_black")]
        session.out.table(_files(snapshot), columns, essential="path")
        return
    rows = list(_tensors_of(snapshot))
    columns += [Column("dtype"), Column("shape", _shape)]
    # The same path in every line would only fill the screen.
    if len({row["file"] for row in rows}) > 1:
        columns.append(Column("file", color="bright_black"))
    session.out.table(rows, [*columns, Column("name")], essential="name")


def _files(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    for file in snapshot.files:
        tensors = len(file.header.tensors) if file.header else None
        yield {"path": file.path, "size": file.size, "tensors": tensors}


def _tensors_of(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    for file in snapshot.files:
        for info in file.header.tensors if file.header else ():
            yield {
                "file": file.path,
                "name": info.name,
                "dtype": info.dtype.code,
                "shape": info.shape,
                "size": info.nbytes,
            }


def _tensors(number: int | None) -> str:
    return "" if number is None else count(number, "tensor")


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))
