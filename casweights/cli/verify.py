"""``casweights verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casweights.cli._errors import Exit, status_of_all
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._since import Share, When
from casweights.cli._text import count, size
from casweights.cli._verb import verb

if TYPE_CHECKING:
    from datetime import datetime

    from casweights.cli._session import Session
    from casweights.results import Verification


@verb("verify", Exit.NO_STORE, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)
@click.option("--quick", is_flag=True, help="Check stored bytes without decoding them.")
@click.option(
    "--since",
    type=When(),
    metavar="WHEN",
    help="Check only versions made since a time (2026-11-22, 12h, 7d, 2w), or after the version "
    "that a branch, tag or ID names, and what they need.",
)
@click.option(
    "--sample",
    type=Share(),
    default=1.0,
    metavar="SHARE",
    help="Check the data of only a share of all chunks, such as 5%: other ones each time.",
)
def command(session: Session, quick: bool, since: datetime | str | None, sample: float) -> Exit:
    """Check every object in the store.

    Objects are checked against their checksums, and chunks against their IDs. --quick leaves the
    IDs out: it finds damage, but not every forgery. --since and --sample check a part of the data;
    the indexes of all packs are checked in any case.
    """
    with session.open(Results(session.out)) as repository:
        found = repository.verify(quick=quick, since=since, sample=sample)
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
            "checked_frames": found.checked,
            "checked_bytes": found.nbytes,
            "archives": found.archives,
            "damaged": found.damaged,
            "noted": found.noted,
            "lost": found.lost,
        },
        [
            *_note(found),
            [
                Span(problems, "red" if found.problems else "green"),
                Span(
                    f" in {count(found.snapshots, 'version')}, {count(found.packs, 'pack')}, "
                    f"{_frames(found)}, {size(found.nbytes)}"
                ),
            ],
        ],
    )
    return status_of_all(found.problems)


def _frames(found: Verification) -> str:
    """Return how many frames were checked."""
    if found.checked == found.frames:
        return count(found.frames, "frame")
    return f"{found.checked:,} of {count(found.frames, 'frame')}"


def _note(found: Verification) -> list[list[Span]]:
    """Return the line that says where damage was recorded, and how to repair it."""
    if not found.damaged:
        return []
    damaged = count(found.damaged, "damaged part")
    if found.noted is None:
        text = f"{damaged} noted nowhere: the store cannot be written. Verify it where it can be"
    else:
        text = f"{damaged} noted in {found.noted}: `casweights repair` rebuilds what it can"
    return [[Span(text)]]
