"""``casweights verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._errors import Exit, status_of_all
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._text import count, size
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from casweights.cli._session import Session
    from casweights.results import Verification


@verb("verify", Exit.NO_STORE, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)
@click.option("--quick", is_flag=True, help="Check stored bytes without decoding them.")
def command(session: Session, quick: bool) -> Exit:
    """Check every object in the store.

    Objects are checked against their checksums, and chunks against their IDs. --quick leaves the
    IDs out: it finds damage, but not every forgery.
    """
    with session.open(Results(session.out)) as repository:
        found = repository.verify(quick=quick)
    # Problems are results of this verb, not its failure: they go to standard output.
    for problem in found.problems:
        data = {"code": problem.code, "message": problem.message}
        session.out.event("problem", data, [Span("Problem: ", "red"), Span(problem.message)])
    problems = count(len(found.problems), "problem") if found.problems else "no problems"
    session.out.summary(
        {
            "problems": len(found.problems),
            "quick": quick,
            "versions": found.snapshots,
            "packs": found.packs,
            "frames": found.frames,
            "checked_bytes": found.nbytes,
            "archives": found.archives,
            "damaged": found.damaged,
            "noted": found.noted,
        },
        [
            *_note(found),
            [
                Span(problems, "red" if found.problems else "green"),
                Span(
                    f" in {count(found.snapshots, 'version')}, {count(found.packs, 'pack')}, "
                    f"{count(found.frames, 'frame')}, {size(found.nbytes)}"
                ),
            ],
        ],
    )
    return status_of_all(found.problems)


def _note(found: Verification) -> list[list[Span]]:
    """Return the line that says where damage was recorded, and how to repair it."""
    if not found.damaged:
        return []
    damaged = count(found.damaged, "damaged part")
    if found.noted is None:
        text = f"{damaged} noted nowhere: the store cannot be written. Verify it where it can be"
    else:
        text = f"{damaged} noted in {found.noted}: commit or push the content again to repair it"
    return [[Span(text)]]
