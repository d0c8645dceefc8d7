"""The root command: finds the verb, loads it, and reports what goes wrong."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

import casweights
from casweights.cli._errors import Exit, reported
from casweights.cli._session import Session
from casweights.cli._streams import discard
from casweights.cli._verb import shared_options

VERBS = (
    "init",
    "info",
    "commit",
    "log",
    "show",
    "ls",
    "diff",
    "checkout",
    "cat",
    "tag",
    "branch",
    "stats",
    "verify",
    "repack",
    "push",
    "pull",
)


class Root(click.Group):
    """A group whose verbs are modules of their own, loaded when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order in which one meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a verb."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"casweights.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse what stands before the verb."""
        ctx.obj = Session()
        # Errors come as JSON even where the command line is too broken to find its options.
        ctx.meta[__name__] = "--json" in args
        with reported(ctx.obj.out, as_json=ctx.meta[__name__]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        with reported(ctx.obj.out, as_json=ctx.meta[__name__]):
            status = super().invoke(ctx)
            ctx.obj.out.flush()
            ctx.exit(status or 0)


def run() -> int:
    """Run the command that this process was started with; returns its exit status."""
    try:
        status: int = root(prog_name="casweights", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):  # before or after the verb
        discard(sys.stdout)
        status = Exit.INTERRUPTED
    try:
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)
    return status


@click.command(
    cls=Root,
    params=shared_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(casweights.__version__, message="%(prog)s %(version)s")
def root() -> None:
    """Version control for model weights on dumb object storage."""
