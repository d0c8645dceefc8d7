"""Options that take a span of time: ``7d``, ``36h``, ``1w12h`` or ``0``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

_SPAN = re.compile(r"0|(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?")


class TimeSpan(click.ParamType[timedelta]):
    """A span of time."""

    name = "span"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Return the span that a text names."""
        match = _SPAN.fullmatch(value)
        if not value or match is None:
            self.fail(f"{value!r} is not a span of time: write one such as 7d, 36h or 1w2d", param)
        weeks, days, hours, minutes = (int(part or 0) for part in match.groups())
        try:
            return timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes)
        except OverflowError:
            self.fail(f"{value!r} is too long", param)


grace_option = click.option(
    "--grace",
    type=TimeSpan(),
    default="24h",
    show_default=True,
    metavar="SPAN",
    help="How long what was replaced lies aside before it is deleted, as 7d, 36h or 0.",
)
