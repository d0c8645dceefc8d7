"""``casweights log``."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._graph_rows import MOST, graph_lines, graph_rows
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
from casweights.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casweights.cli._output import Row
    from casweights.cli._session import Session
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.repository import Repository
    from casweights.results import ExpiredVersion


@verb("log", Exit.NO_STORE, Exit.INTEGRITY)
@click.argument("refs", metavar="[REF]...", nargs=-1, shell_complete=complete_ref)
@click.option("-n", "limit", metavar="N", type=click.IntRange(min=1), help="At most N versions.")
@click.option("--expired", is_flag=True, help="Also list expired versions that are still there.")
@click.option(
    "--graph",
    is_flag=True,
    help=f"Draw all branches and tags, or several REFs; {MOST} versions without -n.",
)
def command(
    session: Session, refs: tuple[str, ...], limit: int | None, expired: bool, graph: bool
) -> None:
    """List a version and its history, newest first.

    In all commands, REF is a branch, a tag, an ID or the first digits of an ID (at least 4). ~N
    after it means the Nth version before: main~2 is two versions before main. The default is main.

    Versions that have expired are left out; a line says how many. With --expired, those are listed
    whose bytes are still there, also if a gc has set them aside.

    Versions that were displaced from the branch REF by another writer are listed at the end.

    With --graph, lines lead to the parents. After a colon follows another version that this one is
    stored as differences from, and the share that it has.

    \b
    Examples:
      casweights log
      casweights log -n 5 sft~10
      casweights log --expired
      casweights log --graph -n 20
    """
    if len(refs) > 1 and not graph:
        raise click.UsageError("log lists one REF; with --graph it draws several")
    if expired and graph:
        raise click.UsageError("--expired and --graph exclude each other: give one of them")
    with session.open() as repository:
        names = Names(repository)
        if graph:
            _graph(session, repository, names, refs, limit)
            return
        ref = refs[0] if refs else DEFAULT_BRANCH
        branch = ref.removeprefix("heads/")
        displaced = {name: ids for name, ids in names.displaced.items() if name == branch}
        history = _whole_history if expired else _history
        shown = {} if session.out.mode is Mode.QUIET else displaced  # history only
        session.out.listing(
            _rows(repository, names, islice(history(repository, ref), limit), shown),
            lambda row: [version_line(row), *gap_lines(row["expired"])],
            essential="id",
        )
        displaced_hint(session.out, displaced)


def _graph(
    session: Session,
    repository: Repository,
    names: Names,
    refs: Sequence[str],
    limit: int | None,
) -> None:
    rows = graph_rows(repository, names, refs or None, (limit or MOST) + 1)
    more, rows = len(rows) > (limit or MOST), rows[: limit or MOST]
    session.out.listing(rows, graph_lines(), essential="id")
    displaced_hint(session.out, names.displaced)
    if more and limit is None:
        session.out.hint(f"these are the newest {MOST} versions: -n N draws more")


class _Listed(NamedTuple):
    """A version of a log.

    Attributes:
        snapshot: The version.
        gap: The expired versions after it that are not listed.
        has_expired: Whether it has expired itself.
    """

    snapshot: Snapshot
    gap: Sequence[ExpiredVersion]
    has_expired: bool


def _history(repository: Repository, ref: str) -> Iterator[_Listed]:
    """Yield a version and those before it that stayed."""
    for snapshot, gap in repository.history(ref):
        yield _Listed(snapshot, gap, has_expired=False)


def _whole_history(repository: Repository, ref: str) -> Iterator[_Listed]:
    """Yield a version and all before it that can be read, expired or not."""
    start = repository.resolve(ref)
    has_expired = repository.database.history.expired().find(start) is not None
    for snapshot, expired in repository.history(start):
        gap: list[ExpiredVersion] = []
        current = snapshot
        for row in expired:
            try:
                found = repository.snapshot(row.id)
            except NotFoundError:
                gap.append(row)
                continue
            yield _Listed(current, gap, has_expired)
            current, gap, has_expired = found, [], True
        yield _Listed(current, gap, has_expired)
        has_expired = False


def _rows(
    repository: Repository,
    names: Names,
    history: Iterable[_Listed],
    displaced: Mapping[str, Sequence[SnapshotId]],
) -> Iterator[Row]:
    """Yield the versions of a log, and then those that were displaced from it."""
    for snapshot, gap, has_expired in history:
        row = {**version_row(snapshot, names), "displaced": [], "has_expired": has_expired}
        yield {**row, "expired": gap_row(gap)}
    for branch, versions in displaced.items():
        for version in versions:
            row = version_row(repository.snapshot(version), names)
            yield {**row, "displaced": [branch], "has_expired": False, "expired": None}
