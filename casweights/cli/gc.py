"""``casweights gc``."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import click

from casweights.cli._errors import Exit
from casweights.cli._output import Span
from casweights.cli._progress import Results
from casweights.cli._spans import TimeSpan
from casweights.cli._text import count, micros, moment, size
from casweights.cli._verb import verb
from casweights.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from datetime import timedelta

    from casweights.cli._output import Line
    from casweights.cli._session import Session
    from casweights.repository import Repository
    from casweights.results import CollectStats

_ALL = ""  # the value of --apply without a file


@verb("gc", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY, Exit.INTERRUPTED)
@click.option(
    "--apply",
    "plan",
    is_flag=False,
    flag_value=_ALL,
    metavar="[FILE]",
    help="Do it; with FILE, only what --plan wrote there.",
)
@click.option("--plan", "out", type=click.File("w"), help="Write what would be done to FILE.")
@click.option(
    "--grace",
    type=TimeSpan(),
    default="7d",
    show_default=True,
    metavar="TIME",
    help="How old something must be to go, as 7d or 36h; at least 24h.",
)
@click.option(
    "--no-fold",
    is_flag=True,
    help="Do not write again what is needed of objects that are mostly not needed.",
)
@click.option("--finish", is_flag=True, help="Only delete what was set aside; set nothing aside.")
@click.option(
    "--confirm",
    metavar="STORE",
    help="For less than 24h, in a directory that nobody else uses: the store's path.",
)
def command(
    session: Session,
    plan: str | None,
    out: Any,
    grace: timedelta,
    no_fold: bool,
    finish: bool,
    confirm: str | None,
) -> None:
    """Free the space of what no branch and no tag needs.

    Without --apply, only say what would go. With it, what is older than the grace time is set
    aside: nothing is lost yet, and `casweights undelete` brings it back. A later run, when the
    grace time is over again, deletes it. Commits, publishers and subscribers can continue at the
    same time.

    Where old objects hold much that nothing needs, and little that something does, a run writes the
    rest again, also differences over many expired versions as one. The next run sets the old
    objects aside.

    \b
    Examples:
      casweights gc
      casweights gc --apply
      casweights gc --plan old.json
      casweights gc --apply old.json
    """
    if plan is not None and out is not None:
        raise click.UsageError("--plan and --apply exclude each other: give one of them")
    with session.open(Results(session.out)) as repository:
        done = repository.gc(
            apply=plan is not None,
            grace=grace,
            only=_planned(repository, plan) if plan else None,
            finish_only=finish,
            confirm=confirm,
            fold=not no_fold,
        )
        if out is not None:
            _write_plan(repository, done, out)
    session.out.summary(_data(done), _lines(done, grace), essential="collection")
    if not done.applied and (done.objects or done.finished or done.restored):
        file = "" if out is None else f" {out.name}"
        session.out.hint(f"nothing was changed: --apply{file} does it")


def _write_plan(repository: Repository, done: CollectStats, out: Any) -> None:
    objects = [{"name": found.name, "bytes": found.nbytes} for found in done.objects]
    store = repository.info().store_id
    plan = {"store_id": store, "objects": objects, "finished": list(done.finished)}
    json.dump(plan, out, indent=1)
    out.write("\n")


def _planned(repository: Repository, path: str) -> set[str]:
    """Return the names of the objects in a plan, and of the collections that it deletes.

    Raises:
        InvalidInputError: The file is no plan for this store.
    """
    with _opened(path) as file:
        try:
            plan = json.load(file)
            store, names = plan["store_id"], {found["name"] for found in plan["objects"]}
            names |= {str(collection) for collection in plan["finished"]}
        except (ValueError, LookupError, TypeError) as error:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"{path} is no plan: `casweights gc --plan FILE` writes one"
            ) from error
    if store != repository.info().store_id:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"{path} is a plan for another store than {repository.url}"
        )
    return names


def _opened(path: str) -> IO[str]:
    try:
        return click.open_file(path)
    except OSError as error:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"cannot read the plan {path}: {error.strerror}"
        ) from error


def _data(done: CollectStats) -> dict[str, Any]:
    return {
        "applied": done.applied,
        "collection": done.collection,
        "objects": [
            {"name": found.name, "bytes": found.nbytes, "time": micros(found.created)}
            for found in done.objects
        ],
        "bytes": done.nbytes,
        "kept": done.kept,
        "restored": list(done.restored),
        "folded": None
        if done.folded is None
        else {
            "chunks": done.folded.chunks,
            "objects": done.folded.objects,
            "bytes": done.folded.nbytes,
        },
        "finished": list(done.finished),
        "finished_bytes": done.finished_bytes,
        "pending": [
            {
                "collection": found.id,
                "objects": found.objects,
                "bytes": found.nbytes,
                "since": micros(found.since) if found.since > 0 else None,
            }
            for found in done.pending
        ],
    }


def _lines(done: CollectStats, grace: timedelta) -> list[Line]:
    would = "" if done.applied else "would be "
    lines: list[Line] = [
        [
            Span(
                f"{count(len(done.objects), 'object')} of {size(done.nbytes)} {would}set aside, "
                f"{size(done.finished_bytes)} {would}deleted, {count(done.kept, 'object')} kept"
            )
        ]
    ]
    if done.restored:
        back = count(len(done.restored), "object")
        lines.append([Span(f"{back} {would}brought back: versions need them again")])
    if done.folded:
        rest = count(done.folded.objects, "object")
        text = f"{size(done.folded.nbytes)} written again: the next run can set {rest} aside"
        lines.append([Span(text)])
    replaced = [found for found in done.pending if found.is_replaced]
    if replaced:
        objects = count(sum(found.objects for found in replaced), "object")
        nbytes = size(sum(found.nbytes for found in replaced))
        lines.append([Span(f"{objects} of {nbytes} aside that others replace: see maintain")])
    for found in (found for found in done.pending if not found.is_replaced):
        until = "its run has not ended"
        if found.since > 0:
            until = f"can be deleted from {moment(micros(found.since) + grace)} on"
        lines.append(
            [
                Span(found.id, "yellow"),
                Span(f"  {count(found.objects, 'object')} of {size(found.nbytes)} aside: {until}"),
            ]
        )
    return lines
