"""How verbs are declared: options that all have, help that ends with exit statuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from casweights.cli._errors import MEANINGS, Exit
from casweights.cli._output import Mode
from casweights.cli._session import STORE_VARIABLE, Session

if TYPE_CHECKING:
    from collections.abc import Sequence

P = ParamSpec("P")
Function = Callable[Concatenate[Session, P], Exit | None]


class Verb(click.Command):
    """A command whose help ends with its exit statuses.

    Args:
        exits: Those that matter beside the usual.
        args: See `click.Command`.
        kwargs: See `click.Command`.
    """

    def __init__(self, *args: Any, exits: Sequence[Exit], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exits = sorted({Exit.OK, Exit.ERROR, Exit.USAGE, Exit.UNREACHABLE, *exits})

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit statuses."""
        with formatter.section("Exit status"):
            formatter.write_dl([(str(int(status)), MEANINGS[status]) for status in self.exits])


def verb(name: str, *exits: Exit) -> Callable[[Function[P]], Verb]:
    """Make a verb of a function that takes the session and the verb's own parameters.

    Args:
        name: The verb.
        exits: Exit statuses that its help shall tell of.
    """

    def decorate(function: Function[P]) -> Verb:
        command = click.command(name, cls=Verb, exits=exits)(click.pass_obj(function))
        command.params += shared_options()
        return command

    return decorate


def shared_options() -> list[click.Parameter]:
    """The options that may stand before the verb and after it."""
    return [
        click.Option(
            ["--store"],
            metavar="STORE",
            expose_value=False,
            callback=_set_store,
            help=f"The store: a directory. [default: {STORE_VARIABLE}, or the nearest one]",
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
            help="Write only the essential, as IDs or names.",
        ),
    ]


def _set_store(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        if not value:
            raise click.BadParameter("it is empty")
        ctx.ensure_object(Session).store = value


def _set_mode(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    out = ctx.ensure_object(Session).out
    if value:
        mode = Mode.JSON if param.name == "json" else Mode.QUIET
        if out.mode not in (Mode.HUMAN, mode):
            raise click.UsageError("--json and --quiet exclude each other", ctx)
        out.mode = mode
