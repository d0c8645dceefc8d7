"""Rows and lines that show versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casweights.cli._output import Span
from casweights.cli._text import count, moment, short, size, subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casweights.cli._output import Line, Output, Row
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.repository import Repository
    from casweights.results import BaseVersion, ExpiredVersion


class Names:
    """The branches and tags of a store, by the version that they name.

    Attributes:
        displaced: Displaced versions, by branch.
    """

    def __init__(self, repository: Repository) -> None:
        self._branches = _inverse(repository.branches())
        self._tags = _inverse(repository.tags())
        self.displaced = repository.displaced()

    def branches(self, snapshot: SnapshotId) -> Sequence[str]:
        """Return the branches whose head is this version."""
        return self._branches.get(snapshot, [])

    def tags(self, snapshot: SnapshotId) -> Sequence[str]:
        """Return the tags of this version."""
        return self._tags.get(snapshot, [])


def _inverse(names: Mapping[str, SnapshotId]) -> dict[SnapshotId, list[str]]:
    found: dict[SnapshotId, list[str]] = {}
    for name, snapshot in names.items():
        found.setdefault(snapshot, []).append(name)
    return found


def displaced_hint(out: Output, displaced: Mapping[str, Sequence[SnapshotId]]) -> None:
    """Write a hint what to do about displaced versions, if there are any."""
    if displaced:
        out.hint(
            f"another writer's move displaced {count(sum(map(len, displaced.values())), 'version')}"
            f" from {', '.join(displaced)}: `casweights branch NAME ID` keeps one under a name, "
            "`casweights branch BRANCH ID --drop` forgets it"
        )


def version_row(snapshot: Snapshot, names: Names) -> dict[str, Any]:
    """Return the fields of a version, for programs."""
    return {
        "id": snapshot.id,
        "parents": snapshot.parents,
        "time": snapshot.time,
        "author": snapshot.author,
        "message": snapshot.message,
        "metadata": snapshot.metadata,
        "branches": names.branches(snapshot.id),
        "tags": names.tags(snapshot.id),
        "size": snapshot.size,
        "files": len(snapshot.files),
        "tensors": sum(len(file.header.tensors) for file in snapshot.files if file.header),
    }


def version_line(row: Row) -> Line:
    """Return the line for a version, from its fields."""
    return [
        Span(short(row["id"]), "yellow"),
        Span(f"  {moment(row['time'])}  {size(row['size']):>8}  "),
        *names_spans(row),
        Span(subject(row["message"])),
    ]


def lineage_row(lineage: Sequence[BaseVersion], names: Names) -> list[dict[str, Any]]:
    """Return the fields of the versions that a version was made from, for programs."""
    return [
        {
            "id": one.snapshot,
            "size": one.nbytes,
            "share": one.share,
            "parent": one.is_parent,
            "state": one.state,
            "names": [*names.branches(one.snapshot), *names.tags(one.snapshot)],
        }
        for one in lineage
    ]


def origin_text(row: Row) -> str:
    """Return what a row says about a version that another one was made from."""
    names = ", ".join(row["names"])
    parts = [f"{names} ({short(row['id'])})" if names else short(row["id"])]
    parts += ["its parent"] * row["parent"]
    parts += [row["state"]] * (row["state"] != "present")
    return f"{row['share']:.1%} from {', '.join(parts)}"


def gap_row(expired: Sequence[ExpiredVersion]) -> dict[str, Any] | None:
    """Return the fields of expired versions in a row, for programs; None without any."""
    if not expired:
        return None
    return {
        "versions": len(expired),
        "first": expired[-1].number,
        "last": expired[0].number,
        "since": min(row.time for row in expired),
        "until": max(row.time for row in expired),
        "policies": list(dict.fromkeys(row.policy for row in expired)),
    }


def gap_lines(gap: Row | None) -> list[Line]:
    """Return the line for expired versions in a row, from its fields; none without them."""
    if gap is None:
        return []
    days = dict.fromkeys(moment(gap[key]).partition(" ")[0] for key in ("since", "until"))
    text = f"… {count(gap['versions'], 'version')} expired {' to '.join(days)} by policy"
    return [[Span(f"{text} ({'; '.join(gap['policies'])})", "bright_black")]]


def names_spans(row: Row) -> list[Span]:
    """Return the names of a version as ``(main, tag v1)``; nothing if it has none."""
    names = [(f"displaced from {name}", "red") for name in row.get("displaced", ())]
    names += [(name, "green") for name in row["branches"]]
    names += [(f"tag {name}", "cyan") for name in row["tags"]]
    names += [("expired", "bright_black")] * row.get("has_expired", False)
    if not names:
        return []
    spans = [Span("(")]
    for name, color in names:
        spans += [Span("" if len(spans) == 1 else ", "), Span(name, color)]
    return [*spans, Span(") ")]
