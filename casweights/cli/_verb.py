"""The declaration of verbs: the options of all verbs, and the exit statuses in the help."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from casweights.cli._errors import MEANINGS, Exit
from casweights.cli._output import Mode
from casweights.cli._session import STORE_VARIABLE, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

NEAREST = "the nearest store in this folder or above"

P = ParamSpec("P")
Function = Callable[Concatenate[Session, P], Exit | None]


class Verb(click.Command):
    """A command whose help ends with its exit statuses.

    Args:
        exits: The exit statuses of this command, in addition to those that all commands have.
        args: Arguments of `click.Command`.
        kwargs: Arguments of `click.Command`.
    """

    def __init__(self, *args: Any, exits: Sequence[Exit], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exits = sorted({Exit.OK, Exit.ERROR, Exit.USAGE, Exit.UNREACHABLE, *exits})

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of exit statuses."""
        with formatter.section("Exit status"):
            formatter.write_dl([(str(int(status)), MEANINGS[status]) for status in self.exits])


def verb(
    name: str, *exits: Exit, store: str = "The store", default: str = NEAREST
) -> Callable[[Function[P]], Verb]:
    """Make a verb from a function of the session and the verb's own parameters.

    Args:
        name: The verb.
        exits: Exit statuses listed in the help, in addition to those that all verbs have.
        store: The role of the store that ``--store`` names, for the help.
        default: The store if neither ``--store`` nor the environment names one, for the help.
    """

    def decorate(function: Function[P]) -> Verb:
        command = click.command(name, cls=Verb, exits=exits)(click.pass_obj(function))
        command.params += _shared_options(store, default)  # in the help, below the verb's own
        return command

    return decorate


def root_options() -> list[click.Parameter]:
    """Return the options that may also be given before the verb."""
    return _shared_options("The store", NEAREST)


def _shared_options(store: str, default: str) -> list[click.Parameter]:
    return [
        click.Option(
            ["--store"],
            metavar="STORE",
            expose_value=False,
            callback=_set_store,
            help=f"{store}: a directory, or hf://buckets/NAMESPACE/NAME[/FOLDER] for a bucket of "
            f"the Hugging Face Hub.  [default: ${STORE_VARIABLE}, or {default}]",
        ),
        click.Option(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_set_mode,
            help="Write JSON, for programs.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_set_mode,
            help="Write only IDs, names or paths, for shell scripts.",
        ),
    ]


def _set_store(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        if not value:  # most likely an unset variable of a script: it must not mean the nearest one
            raise click.BadParameter("it must not be empty")
        ctx.ensure_object(Session).store = value


def _set_mode(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    out = ctx.ensure_object(Session).out
    if value:
        mode = Mode.JSON if param.name == "json" else Mode.QUIET
        if out.mode not in (Mode.HUMAN, mode):
            raise click.UsageError("--json and --quiet exclude each other: give one of them", ctx)
        out.mode = mode
