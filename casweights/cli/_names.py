"""What tags and branches have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.cli._output import Column, Span
from casweights.cli._text import moment, short, subject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casweights.cli._output import Output
    from casweights.ids import SnapshotId
    from casweights.repository import Repository

_COLUMNS = (
    Column("name", color="green"),
    Column("id", short, color="yellow"),
    Column("time", moment),
    Column("message", subject),
)


def list_names(out: Output, repository: Repository, names: Mapping[str, SnapshotId]) -> None:
    """List names with the versions they stand for."""
    snapshots = ((name, repository.snapshot(snapshot)) for name, snapshot in names.items())
    rows = (
        {"name": name, "id": snapshot.id, "time": snapshot.time, "message": snapshot.message}
        for name, snapshot in snapshots
    )
    out.table(rows, _COLUMNS, essential="name")


def named(out: Output, kind: str, name: str, snapshot: SnapshotId) -> None:
    """Tell that a version has a name now."""
    line = [Span(short(snapshot), "yellow"), Span(f"  is {kind} "), Span(name, "green")]
    out.record({"name": name, "id": snapshot}, [line], essential="id")


def deleted(out: Output, kind: str, name: str) -> None:
    """Tell that a name is gone."""
    out.record({"name": name, "deleted": True}, [f"{kind} {name} is deleted"])
