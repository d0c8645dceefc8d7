"""Options that choose a part of a store: a time or version, and a share."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from typing import Any

_AGE = re.compile(r"([0-9]{1,6})(h|d|w)")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+(Z|[+-][0-9:]+)?)?")
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)%")


class When(click.ParamType["datetime | str"]):
    """A time, an age, or the name of a version: a `datetime`, or the text itself."""

    name = "when"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | str:
        """Return the time; a text that is neither a time nor an age names a version."""
        text = str(value)
        if age := _AGE.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])})
        if not _TIME.fullmatch(text):
            return text
        try:
            return datetime.fromisoformat(text).astimezone()  # of this time zone, if it has none
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is not a time: write 2026-11-22 or 2026-11-22T10:08", param, ctx)


class Share(click.ParamType["float"]):
    """A percentage, as a number above 0 and at most 1."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the share."""
        if isinstance(value, float):
            return value
        found = _SHARE.fullmatch(str(value))
        if found is None or not 0 < float(found[1]) <= 100:
            self.fail(f"{value!r} is not a share: write 5%, above 0% and at most 100%", param, ctx)
        return float(found[1]) / 100
