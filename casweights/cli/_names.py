"""Lists and messages that the verbs `tag` and `branch` share."""

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
    """List names and the versions that they name.

    Args:
        out: Where to write.
        repository: The store, for the times and messages of the versions.
        names: The versions, by name.
        displaced: The versions displaced from each branch; None for a list of tags.
    """
    rows = []
    for name, version in names.items():
        others = [] if displaced is None else displaced.get(name, ())
        row = _row(repository, name, version)
        rows.append(row if displaced is None else {**row, "displaced": others})
        # Programs read the field `displaced`; shell scripts get the names alone.
        if out.mode is Mode.HUMAN:
            rows += [_row(repository, f"{name} (displaced)", other) for other in others]
    out.table(rows, _COLUMNS, essential="name")


def _row(repository: Repository, name: str, version: SnapshotId) -> dict[str, Any]:
    snapshot = repository.snapshot(version)
    return {"name": name, "id": snapshot.id, "time": snapshot.time, "message": snapshot.message}


def list_deleted(out: Output, repository: Repository, kind: str) -> None:
    """List the deleted refs of a kind, ``heads/`` or ``tags/``, with their last versions."""
    found = {
        name.removeprefix(kind): version
        for name, version in repository.deleted().items()
        if name.startswith(kind)
    }
    list_names(out, repository, found)


def named(out: Output, kind: str, name: str, snapshot: SnapshotId) -> None:
    """Report that a branch or tag now names a version."""
    line = [Span(short(snapshot), "yellow"), Span(f"  is {kind} "), Span(name, "green")]
    out.record({"name": name, "id": snapshot}, [line], essential="id")


def deleted(out: Output, kind: str, name: str) -> None:
    """Report that a branch or tag was deleted."""
    out.record({"name": name, "deleted": True}, [f"{kind} {name} is deleted"])
