"""``casweights diff``."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from casweights.cli._completion import complete_ref
from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._text import size
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights.cli._output import Line
    from casweights.cli._session import Session
    from casweights.results import Change, Diff

_SIGNS = {
    "added": Span("+", "green"),
    "removed": Span("-", "red"),
    "changed": Span("~", "yellow"),
    "moved": Span(">", "cyan"),
    "renamed": Span(">", "cyan"),
    "copied": Span("=", "cyan"),
    "fused": Span(">", "cyan"),
    "split": Span(">", "cyan"),
}


@verb("diff", Exit.NO_STORE, Exit.INTEGRITY)
@click.argument("old", shell_complete=complete_ref)
@click.argument("new", shell_complete=complete_ref)
def command(session: Session, old: str, new: str) -> None:
    """Compare two versions by file and by tensor.

    Little more than the two manifests is read, so this is fast for versions of any size. Tensors
    and files that have another name or place are found by content, name and shape. If names and
    shapes do not tell, as of tensors that were fused or split or whose layers have other numbers,
    up to 1 GiB of them is read, and compared row by row.

    \b
    Example:
      casweights diff main~1 main
    """
    with session.open() as repository:
        diff = repository.diff(old, new)
    session.out.record(_data(diff), _lines(diff), essential="files")


def _data(diff: Diff) -> dict[str, Any]:
    changes = [
        {
            "kind": change.kind,
            "file": change.file,
            "tensor": change.tensor,
            "old": change.old,
            "new": change.new,
            "old_file": change.old_file,
            "old_tensor": change.old_tensor,
            "sources": [{"file": file, "tensor": tensor} for file, tensor in change.sources],
            "same_content": change.has_same_content,
            "new_bytes": change.nbytes,
        }
        for change in diff.changes
    ]
    return {
        "old": diff.old,
        "new": diff.new,
        "files": sorted({path for change in diff.changes for path in _paths(change)}),
        "changes": changes,
        "unchanged": diff.unchanged,
        "new_bytes": diff.nbytes,
    }


def _paths(change: Change) -> list[str]:
    """Return the paths of the files that differ by a change."""
    old = None if change.kind == "copied" else change.old_file
    sources = [file for file, _ in change.sources]
    return [change.file, *sources] if old is None else [change.file, old]


def _lines(diff: Diff) -> Iterator[Line]:
    for path, group in groupby(diff.changes, key=lambda change: change.file):
        changes = list(group)
        yield from _file_lines(path, changes)
    kinds = Counter(str(change.kind) for change in diff.changes)
    counts = [f"{kinds[kind]} {kind}" for kind in _SIGNS if kinds[kind]]
    if counts:
        yield f"{', '.join(counts)}, {diff.unchanged} unchanged; {size(diff.nbytes)} new"
    else:
        yield f"no difference, {diff.unchanged} unchanged"


def _file_lines(path: str, changes: list[Change]) -> Iterator[Line]:
    """Yield a line for the file, and one for each tensor of which that does not tell all."""
    whole = next((change for change in changes if change.tensor is None), None)
    if whole is None:
        yield [_SIGNS["changed"], Span(f" {path}")]
    else:
        nbytes = sum(change.nbytes for change in changes)
        yield _change_line(whole, path, nbytes)
    for change in changes:
        if change.tensor is not None and not (whole and _is_told_by(change, whole)):
            yield [Span("  "), *_change_line(change, change.tensor, change.nbytes)]


def _is_told_by(change: Change, file: Change) -> bool:
    """Whether the change of a file tells all about the change of a tensor in it."""
    if change.kind == "moved":
        return change.has_same_content and change.old_file == file.old_file
    return change.kind == file.kind and file.kind in ("added", "removed")


def _change_line(change: Change, name: str, nbytes: int) -> list[Span]:
    old, new = change.old or "", change.new or ""
    # A tensor whose values changed has the same type and shape twice: one of them is enough.
    what = f"{old} -> {new}" if old and new and old != new else new or old
    return [
        _SIGNS[change.kind],
        Span(f" {size(nbytes) if change.new else '':>8}  {name}"),
        Span(f"  {what}", "bright_black"),
        *_source(change),
    ]


def _source(change: Change) -> list[Span]:
    """Return where something was in the old version, if that was elsewhere."""
    sources: list[tuple[str, str | None]] = [*change.sources]
    if change.old_file is not None:
        sources = [(change.old_file, change.old_tensor)]
    if not sources:
        return []
    places = ", ".join(_place(change, *source) for source in sources)
    content = ", same content" if change.has_same_content else ""
    return [Span(f"  {change.kind} from {places}{content}", "cyan")]


def _place(change: Change, file: str, tensor: str | None) -> str:
    """Return where something was, for a change."""
    if tensor is None:
        return file
    return tensor if file == change.file else f"{tensor} in {file}"
