"""Retention: which versions of a history a policy keeps, and why. Pure, without a store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casweights.config import Keep


class Row(NamedTuple):
    """What decides about a version.

    Attributes:
        number: Its number.
        time: Its time, with a time zone.
        meets: Whether its metadata meet the condition `Keep.where`.
    """

    number: int
    time: datetime
    meets: bool = False


class _Unit(NamedTuple):
    """A unit of the calendar.

    Attributes:
        rule: The field of `Keep`.
        start: Returns the beginning of the unit that contains a time in UTC.
        shown: Number of characters of its beginning, in ISO 8601, that show it.
    """

    rule: str
    start: Callable[[datetime], datetime]
    shown: int


def _day(time: datetime) -> datetime:
    return time.replace(hour=0, minute=0, second=0, microsecond=0)


def _week(time: datetime) -> datetime:
    # In the first days of year 1, the Monday before them does not exist.
    day = _day(time)
    return day - timedelta(days=min(day.weekday(), (day - _FIRST).days))


_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_UNITS = (
    _Unit("hourly", lambda time: time.replace(minute=0, second=0, microsecond=0), 16),
    _Unit("daily", _day, 10),
    _Unit("weekly", _week, 10),
    _Unit("monthly", lambda time: _day(time).replace(day=1), 7),
    _Unit("yearly", lambda time: _day(time).replace(month=1, day=1), 4),
)


def reasons(rows: Sequence[Row], keep: Keep, now: datetime) -> list[tuple[str, ...]]:
    """Return for each version the rules that keep it, for people; none if it goes.

    What a policy keeps, it keeps the second time, too: applied again at the same moment, it lets
    nothing more go.

    Args:
        rows: The versions of one branch that have not expired, newest first.
        keep: The rules.
        now: The present time. A version with a later time stays if there is a rule about time:
            its clock or this one is wrong.
    """
    found: list[list[str]] = [[] for _ in rows]
    for number, row in enumerate(rows):
        found[number] += _by_place(number, row, keep)
    for number, why in _by_time(rows, keep, now):
        found[number].append(why)
    for number, row in enumerate(rows):
        if keep.where is not None and row.meets:
            found[number].append(f"where {keep.where}")
    return [tuple(why) for why in found]


def _by_place(position: int, row: Row, keep: Keep) -> Iterator[str]:
    if keep.last is not None and position < keep.last:
        yield f"last {keep.last}"
    if keep.every is not None and row.number % keep.every == 0:
        yield f"every {keep.every}"


def _by_time(rows: Sequence[Row], keep: Keep, now: datetime) -> Iterator[tuple[int, str]]:
    """Yield the positions of versions that rules about time keep, with the rule of each."""
    units = [unit for unit in _UNITS if getattr(keep, unit.rule) is not None]
    if keep.within is None and not units:
        return
    past = [(number, row.time.astimezone(UTC)) for number, row in enumerate(rows)]
    for number, time in past:
        if time > now:
            yield number, "its time is in the future"
    past = [(number, time) for number, time in past if time <= now]
    if keep.within is not None and past:
        newest = max(time for _, time in past)
        for number, time in past:
            if newest - time <= keep.within:
                yield number, f"within {span(keep.within)}"
    for unit in units:
        newest_of: dict[datetime, int] = {}
        for number, time in past:
            newest_of.setdefault(unit.start(time), number)
        for start in sorted(newest_of, reverse=True)[: getattr(keep, unit.rule)]:
            yield newest_of[start], f"{unit.rule} {start.isoformat(sep=' ')[: unit.shown]}"


def describe(keep: Keep) -> str:
    """Return the rules of an entry of a policy, for people, as ``last 3, every 50``."""
    parts = [f"last {keep.last}"] if keep.last is not None else []
    if keep.every is not None:
        parts.append(f"every {keep.every}")
    if keep.within is not None:
        parts.append(f"within {span(keep.within)}")
    counts = {unit.rule: getattr(keep, unit.rule) for unit in _UNITS}
    parts += [f"{rule} {count}" for rule, count in counts.items() if count is not None]
    if keep.where is not None:
        parts.append(f"where {keep.where}")
    return ", ".join(parts)


def span(time: timedelta) -> str:
    """Return a span of time as ``7d`` or ``1d12h``."""
    left, parts = time // timedelta(seconds=1), []
    for seconds, letter in ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        count, left = divmod(left, seconds)
        if count:
            parts.append(f"{count}{letter}")
    return "".join(parts) or f"{time // timedelta(microseconds=1)}us"
