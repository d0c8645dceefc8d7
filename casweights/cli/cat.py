"""``casweights cat``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session

# Bytes of binary files that could control a terminal; tabs and line ends belong to text.
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\r")


@verb("cat", Exit.NO_STORE, Exit.INTEGRITY, Exit.INTERRUPTED)
@click.argument("ref", shell_complete=complete_ref)
@click.argument("path")
def command(session: Session, ref: str, path: str) -> None:
    """Write a file of a version to standard output.

    The bytes are written unchanged; --json and --quiet make no difference. Each piece is verified
    before it is written: if the exit status is not 0, the output is correct but incomplete. Binary
    files are not written to a terminal.

    \b
    Example:
      casweights cat main config.json | jq .hidden_size
    """
    with session.open() as repository:
        for piece in repository.read(ref, path):
            if session.out.is_terminal and not _CONTROLS.isdisjoint(piece):
                raise click.UsageError(
                    f"{path} is a binary file: redirect the output, as in "
                    f"`casweights cat {ref} {path} > file`"
                )
            session.out.raw(piece)
