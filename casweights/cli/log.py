"""``casweights log``."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._output import Mode
from casweights.cli._verb import verb
from casweights.cli._versions import (
    Names,
    displaced_hint,
    gap_lines,
    gap_row,
    version_line,
    version_row,
)
from casweights.config import DEFAULT_BRANCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casweights.cli._output import Row
    from casweights.cli._session import Session
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.repository import Repository
    from casweights.results import ExpiredVersion


@verb("log", Exit.NO_STORE, Exit.INTEGRITY)
@click.argument("ref", default=DEFAULT_BRANCH, shell_complete=complete_ref)
@click.option("-n", "limit", metavar="N", type=click.IntRange(min=1), help="At most N versions.")
def command(session: Session, ref: str, limit: int | None) -> None:
    """List a version and its history, newest first.

    In all commands, REF is a branch, a tag, an ID or the first digits of an ID (at least 4). ~N
    after it means the Nth version before: main~2 is two versions before main. The default is main.

    Versions that have expired are left out; a line says how many.

    Versions that were displaced from the branch REF by another writer are listed at the end.

    \b
    Examples:
      casweights log
      casweights log -n 5 sft~10
    """
    with session.open() as repository:
        names = Names(repository)
        branch = ref.removeprefix("heads/")
        displaced = {name: ids for name, ids in names.displaced.items() if name == branch}
        shown = {} if session.out.mode is Mode.QUIET else displaced  # history only
        session.out.listing(
            _rows(repository, names, islice(repository.history(ref), limit), shown),
            lambda row: [version_line(row), *gap_lines(row["expired"])],
            essential="id",
        )
        displaced_hint(session.out, displaced)


def _rows(
    repository: Repository,
    names: Names,
    history: Iterable[tuple[Snapshot, Sequence[ExpiredVersion]]],
    displaced: Mapping[str, Sequence[SnapshotId]],
) -> Iterator[Row]:
    """Yield the versions of a log, and then those that were displaced from it."""
    for snapshot, expired in history:
        yield {**version_row(snapshot, names), "displaced": [], "expired": gap_row(expired)}
    for branch, versions in displaced.items():
        for version in versions:
            row = version_row(repository.snapshot(version), names)
            yield {**row, "displaced": [branch], "expired": None}
