"""What tags and branches have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casweights.cli._output import Column, Mode, Span
from casweights.cli._text import moment, short, subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casweights.cli._output import Output
    from casweights.ids import SnapshotId
    from casweights.repository import Repository

_COLUMNS = (
    Column("name", color="green"),
    Column("id", short, color="yellow"),
    Column("time", moment),
    Column("message", subject),
)


def list_names(
    out: Output,
    repository: Repository,
    names: Mapping[str, SnapshotId],
    displaced: Mapping[str, Sequence[SnapshotId]] | None = None,
) -> None:
    """List names with the versions they stand for.

    Args:
        out: Where to.
        repository: The store.
        names: The names.
        displaced: Versions that were displaced from branches, by name, if these are branches.
    """
    rows = []
    for name, version in names.items():
        beside = [] if displaced is None else displaced.get(name, ())
        row = _row(repository, name, version)
        rows.append(row if displaced is None else {**row, "displaced": beside})
        if out.mode is Mode.HUMAN:
            rows += [_row(repository, f"{name} (displaced)", other) for other in beside]
    out.table(rows, _COLUMNS, essential="name")


def _row(repository: Repository, name: str, version: SnapshotId) -> dict[str, Any]:
    snapshot = repository.snapshot(version)
    return {"name": name, "id": snapshot.id, "time": snapshot.time, "message": snapshot.message}


def named(out: Output, kind: str, name: str, snapshot: SnapshotId) -> None:
    """Tell that a version has a name now."""
    line = [Span(short(snapshot), "yellow"), Span(f"  is {kind} "), Span(name, "green")]
    out.record({"name": name, "id": snapshot}, [line], essential="id")


def deleted(out: Output, kind: str, name: str) -> None:
    """Tell that a name is gone."""
    out.record({"name": name, "deleted": True}, [f"{kind} {name} is deleted"])
