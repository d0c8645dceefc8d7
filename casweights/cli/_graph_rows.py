"""Rows and lines of `log --graph`."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from casweights.cli._graph import Columns, children_first
from casweights.cli._output import Span
from casweights.cli._versions import (
    gap_lines,
    gap_row,
    lineage_row,
    origin_text,
    version_line,
    version_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from casweights.cli._output import Line, Row
    from casweights.cli._versions import Names
    from casweights.ids import SnapshotId
    from casweights.repository import Repository

MOST = 1000  # versions that are drawn by default: all of them are read before the first is shown


def graph_rows(
    repository: Repository, names: Names, refs: Sequence[str] | None, limit: int
) -> list[dict[str, Any]]:
    """Return the fields of versions of a graph, for programs, each after its children.

    Args:
        repository: The store.
        names: Its branches and tags.
        refs: The versions to begin with; None for all branches and tags.
        limit: The number of versions to return at most.
    """
    rows: dict[SnapshotId, dict[str, Any]] = {}
    for version in islice(repository.graph(refs), limit):
        rows[version.snapshot.id] = {
            **version_row(version.snapshot, names),
            "number": version.snapshot.number,
            "leads_to": version.parents,
            "expired": gap_row(version.expired),
            "lineage": lineage_row(version.lineage, names),
        }
    order = children_first({version: row["leads_to"] for version, row in rows.items()})
    _name_bases([rows[version] for version in order])
    return [rows[version] for version in order]


def _name_bases(rows: Sequence[dict[str, Any]]) -> None:
    """Give the versions that others were made from names such as main~3."""
    names = _names(rows)
    for origin in (origin for row in rows for origin in row["lineage"]):
        if not origin["names"] and origin["id"] in names:
            origin["names"] = [names[origin["id"]]]


def _names(rows: Sequence[Row]) -> Mapping[SnapshotId, str]:
    """Return a name of each version that comes before a branch or tag, by first parents."""
    nearest: dict[SnapshotId, tuple[int, str]] = {}  # versions before it, and the name of the last
    numbers = {row["id"]: row["number"] for row in rows}
    for row in rows:
        own = next(iter((*row["branches"], *row["tags"])), None)
        if own is not None:
            nearest[row["id"]] = 0, own
        steps = 1 + (row["expired"]["versions"] if row["expired"] else 0)
        for first in row["leads_to"][:1]:
            if row["id"] in nearest and numbers.get(first) == row["number"] - steps:
                distance, name = nearest[row["id"]]
                nearest[first] = min((distance + steps, name), nearest.get(first, (1 << 63, "")))
    return {one: f"{name}~{steps}" if steps else name for one, (steps, name) in nearest.items()}


def graph_lines() -> Callable[[Row], Iterable[Line]]:
    """Return a function that makes the lines of each version, called in the order of the rows."""
    columns, edges = Columns(), list[str]()

    def lines(row: Row) -> Iterable[Line]:
        drawn = columns.draw(row["id"], row["leads_to"])
        found: list[Line] = [*edges, [Span(drawn.head + " "), *version_line(row)]]
        for origin in row["lineage"]:
            under = drawn.under if origin["parent"] else drawn.found
            found.append(f"{under}   {origin_text(origin)}")
        found += [[Span(f"{drawn.under}   "), *gap] for gap in gap_lines(row["expired"])]
        edges[:] = drawn.edges
        return found

    return lines
