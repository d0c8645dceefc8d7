"""``casweights expire``."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casweights.cli._errors import Exit
from casweights.cli._output import Mode, Span
from casweights.cli._spans import TimeSpan
from casweights.cli._text import count, moment, short
from casweights.cli._verb import verb
from casweights.config import KEEP_COUNTS, Keep
from casweights.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.cli._output import Line, Output
    from casweights.cli._session import Session
    from casweights.results import Expiry, Verdict

_COUNTS = {
    "last": "Keep the newest N versions.",
    "every": "Keep versions whose number is divisible by N.",
    "hourly": "Keep the newest version of each of the last N hours that have one.",
    "daily": "The same for days.",
    "weekly": "The same for weeks.",
    "monthly": "The same for months.",
    "yearly": "The same for years.",
}


def _keep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each rule to a command."""
    where = "Keep versions whose metadata meet a condition, such as 'eval >= 0.7'."
    command = click.option("--keep-where", "where", metavar="CONDITION", help=where)(command)
    for name in reversed(KEEP_COUNTS):
        option = click.option(
            f"--keep-{name}", name, metavar="N", type=click.IntRange(min=1), help=_COUNTS[name]
        )
        command = option(command)
    within = "Keep versions at most SPAN older than the newest one, such as 7d or 36h."
    return click.option("--keep-within", "within", type=TimeSpan(), metavar="SPAN", help=within)(
        command
    )


@verb("expire", Exit.NO_STORE, Exit.CONFLICT, Exit.PERMISSION, Exit.INTEGRITY)
@_keep_options
@click.option("--branches", metavar="PATTERN", help="Branches to look at. By default, all.")
@click.option(
    "--policy",
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Read the rules from a JSON file, - for standard input.",
)
@click.option(
    "--set-policy",
    "keeps",
    is_flag=True,
    help="Keep these rules in the store, in place of those that it has.",
)
@click.option("--drop-policy", "drops", is_flag=True, help="Remove the rules from the store.")
@click.option("--apply", is_flag=True, help="Record what goes; otherwise only show it.")
def command(
    session: Session, file: Path | None, keeps: bool, drops: bool, apply: bool, **rules: Any
) -> None:
    """Decide which versions of branches stay, and let the others expire.

    A version stays if at least one of the --keep rules keeps it. The heads of branches and versions
    with a tag always stay. Without rules, the policy of the store decides. Without --apply, the
    command only shows what would happen.

    Expired versions are left out of `log`, `push` and `pull`. No byte is deleted, and each can
    still be read by its ID. A branch or tag at one brings it back.

    --set-policy keeps the rules in the store, where `maintain` applies them. FILE is an array of
    objects whose keys are those of the options, and "branches"; the first that matches counts.

    \b
    Examples:
      casweights expire --keep-last 100 --keep-every 50
      casweights expire --keep-daily 30 --keep-where 'eval >= 0.7' --branches 'run-*' --apply
      casweights expire --keep-last 100 --keep-within 7d --set-policy
    """
    policy = _policy(file, rules)
    if keeps and policy is None:
        raise click.UsageError("--set-policy needs at least one --keep rule, or --policy FILE")
    if drops and (policy is not None or keeps or apply):
        raise click.UsageError("--drop-policy goes with no other option")
    with session.open() as repository:
        if drops:
            repository.set_policy(())
            session.out.summary({"policy": []}, ["The store has no policy any more"])
            return
        if keeps and policy is not None:
            repository.set_policy(policy)
        found = repository.expire(policy, apply=apply)
    _show(session.out, found)


def _policy(file: Path | None, rules: dict[str, Any]) -> list[Keep] | None:
    """Return the policy on the command line; None without rules."""
    given = {name: value for name, value in rules.items() if value is not None}
    if file is not None:
        if given:
            raise click.UsageError("--policy goes with no --keep rule and no --branches")
        with click.open_file(str(file), encoding="utf-8") as stream:
            return _parse(stream.read(), file)
    if given.keys() == {"branches"}:
        raise click.UsageError("--branches needs at least one --keep rule")
    return [Keep(**given)] if given else None


def _parse(text: str, file: Path) -> list[Keep]:
    """Return the policy in a JSON file."""
    try:
        return list(map(_entry, _entries(json.loads(text))))
    except (ValueError, TypeError, click.BadParameter) as error:
        why = error.message if isinstance(error, click.BadParameter) else error
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"{file} is not a policy: {why}. Write an array such as "
            '[{"branches": "run-*", "last": 100, "within": "7d"}]',
        ) from error


def _entries(given: object) -> list[object]:
    if not isinstance(given, list):
        raise TypeError("it is no array")
    return given


def _entry(given: object) -> Keep:
    if not isinstance(given, dict):
        raise TypeError(f"{given!r} is no object")
    known = {field.name for field in fields(Keep)}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(sorted(known))}")
    if "within" in given:
        given["within"] = TimeSpan().convert(str(given["within"]), None, None)
    return Keep(**given)


def _show(out: Output, found: Expiry) -> None:
    for verdict in found.verdicts:
        data = {
            "id": verdict.id,
            "number": verdict.number,
            "time": verdict.time,
            "branches": verdict.branches,
            "stays": verdict.stays,
            "reasons": verdict.reasons,
            "policy": verdict.policy,
        }
        if out.mode is Mode.QUIET:
            out.event("version", data, None if verdict.stays else str(verdict.id))
        else:
            out.event("version", data, _line(verdict))
    data = {
        "stay": found.stay,
        "go": found.go,
        "applied": found.applied,
        "policy": [_fields(keep) for keep in found.policy],
    }
    going = count(found.go, "version")
    done = f"{going} expired" if found.applied else f"{going} would expire"
    staying = f", {count(found.stay, 'version')} {'stays' if found.stay == 1 else 'stay'}"
    out.summary(data, [[Span(done), Span(staying)]])
    if not found.verdicts:
        patterns = ", ".join(repr(keep.branches) for keep in found.policy)
        out.hint(f"no branch matches {patterns}: `casweights branch` lists them")
    if found.go and not found.applied:
        out.hint("nothing was changed: --apply records it")


def _fields(keep: Keep) -> dict[str, Any]:
    found = {name: value for name, value in asdict(keep).items() if value is not None}
    if keep.within is not None:
        found["within"] = keep.within.total_seconds()
    return found


def _line(verdict: Verdict) -> Line:
    why = ", ".join(verdict.reasons) or f"not kept by {verdict.policy}"
    return [
        Span("stays  " if verdict.stays else "goes   ", "green" if verdict.stays else "red"),
        Span(short(verdict.id), "yellow"),
        Span(f"  {verdict.number:>6}  {moment(verdict.time)}  {why}"),
    ]
