"""``casweights repair``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._session import remote_options
from casweights.cli._text import count, short, size, subject
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._output import Line
    from casweights.cli._session import Session
    from casweights.results import LostVersion, RepairReport

_REFUSED = (
    "the store does not let you delete objects, so damaged ones stay next to what was rebuilt: "
    "somebody who may delete should run it, too"
)


@verb("repair", Exit.NO_STORE, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Where to look for what is lost: a store, a directory of safetensors and other files, or "
    "hf://NAMESPACE/NAME for a model repository of the Hub. May be repeated.",
)
@click.option("--apply", is_flag=True, help="Repair; otherwise only say what would be done.")
def command(session: Session, sources: tuple[str, ...], apply: bool) -> Exit:
    """Rebuild damaged and missing chunks and versions.

    They are rebuilt from other copies in the store, from this machine's caches, and from each
    SOURCE: whatever has bytes with the right digests. Damaged packs are replaced. What stays lost
    is recorded in the store, version by version, and nothing of it is deleted.

    \b
    Examples:
      casweights repair                              # what could be rebuilt?
      casweights repair --from ./my-model --apply
      casweights repair --from hf://me/my-model --from /mnt/backup/models --apply
    """
    with session.open(Results(session.out)) as repository:
        done = repository.repair(sources, apply=apply, remote=remote_options())
    for version in done.lost:
        data = {"id": version.snapshot, "number": version.number, "chunks": version.chunks}
        session.out.event("lost", {**data, "message": version.message}, _lost(version))
    session.out.summary(
        {
            "applied": done.applied,
            "damaged": done.damaged,
            "missing_chunks": done.missing,
            "rebuilt_chunks": sum(done.rebuilt.values()),
            "sources": done.rebuilt,
            "restored": list(done.restored),
            "mended": list(done.mended),
            "lost": [version.snapshot for version in done.lost],
            "packs": done.packs,
            "pack_bytes": done.nbytes,
            "replaced": done.replaced,
            "may_delete": done.may_delete,
        },
        _summary(done),
    )
    return Exit.INTEGRITY if done.lost or (not apply and _is_damaged(done)) else Exit.OK


def _is_damaged(report: RepairReport) -> bool:
    """Whether there is anything to repair."""
    return bool(report.damaged or report.missing or report.restored or report.replaced)


def _lost(version: LostVersion) -> Line:
    """Return the line about a version that stays lost."""
    if version.number is None:
        what = "all of it, because no source has its manifest"
    else:
        what = f"{count(version.chunks, 'chunk')}: {subject(version.message)}"
    return [Span("Lost: ", "red"), Span(f"{short(version.snapshot)} {what}".rstrip(": "))]


def _summary(report: RepairReport) -> list[Line]:
    """Return the lines that people read at the end."""
    if not (_is_damaged(report) or report.lost):
        return [[Span("nothing is damaged or missing", "green")]]
    rebuilt = sum(report.rebuilt.values())
    verb = "rebuilt" if report.applied else "can be rebuilt"
    lines: list[Line] = [
        [Span(f"{rebuilt:,} of {count(report.missing, 'missing chunk')} {verb}")],
        *([Span(f"  {number:,} from {source}")] for source, number in report.rebuilt.items()),
    ]
    versions = f"{count(len(report.mended), 'version')} complete again"
    lost = count(len(report.lost), "version")
    state = "still damaged" if report.applied else "would stay damaged"
    color = "red" if report.lost else "green"
    lines.append([Span(f"{versions}, "), Span(f"{lost} {state}", color)])
    if not report.applied:
        lines.append([Span("nothing was written: repeat the command with --apply")])
        return lines
    replaced = f"{count(report.replaced, 'damaged object')} replaced or set aside"
    lines.append([Span(f"{count(report.packs, 'pack')} of {size(report.nbytes)}; {replaced}")])
    if not report.may_delete:
        lines.append([Span(_REFUSED, "yellow")])
    return lines
