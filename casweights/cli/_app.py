"""The root command: find the verb, load it, run it, and report errors."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

import casweights
from casweights.cli._errors import Exit, reported
from casweights.cli._session import Session
from casweights.cli._streams import discard
from casweights.cli._verb import root_options

VERBS = (
    "init",
    "info",
    "commit",
    "log",
    "show",
    "ls",
    "diff",
    "similar",
    "checkout",
    "cat",
    "tag",
    "branch",
    "undelete",
    "stats",
    "verify",
    "repair",
    "repack",
    "maintain",
    "expire",
    "gc",
    "push",
    "pull",
)


# What other programs call our verbs.
_SYNONYMS = {
    "add": "commit",
    "clean": "gc",
    "clone": "pull",
    "copy": "push",
    "fetch": "pull",
    "forget": "expire",
    "history": "log",
    "prune": "expire",
    "restore": "checkout",
    "switch": "checkout",
}


class Root(click.Group):
    """A group that imports the module of a verb when the verb is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which users meet them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb and return its command; None if no verb has this name."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"casweights.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that the first argument names; suggest another one if none has the name."""
        name = args[0]
        if name in VERBS or name.startswith("-"):
            return super().resolve_command(ctx, args)
        message = f"There is no command {name!r}."
        similar = _SYNONYMS.get(name) or next(iter(get_close_matches(name, VERBS, n=1)), None)
        raise click.UsageError(f"{message} Did you mean {similar!r}?" if similar else message, ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments before the verb."""
        ctx.obj = Session()
        # A command line may be too broken for click to find its options; errors are JSON even then.
        ctx.meta[__name__] = "--json" in args
        with reported(ctx.obj.out, as_json=ctx.meta[__name__]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        with reported(ctx.obj.out, as_json=ctx.meta[__name__]):
            status = super().invoke(ctx)
            ctx.obj.out.flush()  # here, so that a failing write still sets the exit status
            ctx.exit(status or 0)


def run() -> int:
    """Run the command line of this process; return its exit status."""
    try:
        # In its standalone mode click would print errors itself, and exit with its own statuses.
        status: int = root(prog_name="casweights", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):  # `reported` handles those while the verb runs
        discard(sys.stdout)
        status = Exit.INTERRUPTED
    try:
        # A flush that fails at the end of the interpreter would change the exit status to 120.
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)
    return status


@click.command(
    cls=Root,
    params=root_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(casweights.__version__, message="%(prog)s %(version)s")
def root() -> None:
    """Version control for model weights on dumb object storage."""
