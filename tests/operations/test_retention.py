"""Which versions a policy keeps, compared with the definitions, one by one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies as st

from casweights import Keep
from casweights.operations.retention import Row, describe, reasons, span
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOW = datetime(2026, 11, 29, 12, 30, tzinfo=UTC)

PERIODS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda time: int(time.timestamp() // 3600),
    "daily": lambda time: time.toordinal(),
    "weekly": lambda time: time.isocalendar()[:2],
    "monthly": lambda time: (time.year, time.month),
    "yearly": lambda time: time.year,
}


def is_kept(rows: Sequence[Row], at: int, keep: Keep) -> bool:
    """Whether a version stays, by what `Keep` says of each rule."""
    row, times = rows[at], [row.time.astimezone(UTC) for row in rows]
    past = [n for n in range(len(rows)) if times[n] <= NOW]
    if keep.last is not None and sum(n < at for n in range(len(rows))) < keep.last:
        return True
    if keep.every is not None and row.number % keep.every == 0:
        return True
    if keep.where is not None and row.meets:
        return True
    rules = {name: count for name in PERIODS if (count := getattr(keep, name)) is not None}
    if at not in past:
        return keep.within is not None or bool(rules)
    if keep.within is not None and all(times[n] - times[at] <= keep.within for n in past):
        return True
    for name, most in rules.items():
        period = {n: PERIODS[name](times[n]) for n in past}
        is_newest = not any(n < at and period[n] == period[at] for n in past)
        later = {period[n] for n in past if period[n] > period[at]}  # type: ignore[operator]
        if is_newest and len(later) < most:
            return True
    return False


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# Ages of minutes, days and years, in any order: clocks may go back, and be wrong.
ages = (
    st.integers(-60, 600).map(lambda minutes: timedelta(minutes=minutes))
    | st.integers(-400, 4000).map(lambda hours: timedelta(hours=hours))
    | st.integers(-2, 1500).map(lambda days: timedelta(days=days))
)
times = st.builds(lambda age, zone: (NOW - age).astimezone(zone), ages, zones)
small = st.none() | st.integers(1, 6)


@st.composite
def histories(draw: st.DrawFn) -> list[Row]:
    """Versions, newest first, some of whose predecessors have expired."""
    numbers = sorted(draw(st.sets(st.integers(1, 60), max_size=25)), reverse=True)
    found = [draw(times) for _ in numbers]
    if draw(st.booleans()):
        found.sort(reverse=True)
    return [Row(n, time, draw(st.booleans())) for n, time in zip(numbers, found, strict=True)]


@st.composite
def policies(draw: st.DrawFn) -> Keep:
    rules = {name: draw(small) for name in ("last", "every", *PERIODS)}
    within = draw(st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=400)))
    where = draw(st.none() | st.just("good"))
    hypothesis.assume(any(rules.values()) or within or where)
    return Keep(**rules, within=within, where=where)  # type: ignore[arg-type]


@hypothesis.settings(max_examples=examples(150))
@hypothesis.given(histories(), policies())
def test_what_stays_is_what_the_definitions_keep(rows: list[Row], keep: Keep) -> None:
    stays = [bool(why) for why in reasons(rows, keep, NOW)]
    assert stays == [is_kept(rows, at, keep) for at in range(len(rows))]


@hypothesis.settings(max_examples=examples(150))
@hypothesis.given(histories(), policies())
def test_a_policy_applied_twice_does_nothing_the_second_time(rows: list[Row], keep: Keep) -> None:
    left = [row for row, why in zip(rows, reasons(rows, keep, NOW), strict=True) if why]
    assert all(reasons(left, keep, NOW))


@hypothesis.given(histories(), policies(), policies())
def test_another_rule_never_removes_more(rows: list[Row], keep: Keep, other: Keep) -> None:
    """Rules only keep: a policy with the larger of both values keeps what either does."""
    if keep.every and other.every:
        return
    counts = {n: max(getattr(keep, n) or 0, getattr(other, n) or 0) for n in ("last", *PERIODS)}
    both = Keep(
        every=keep.every or other.every,
        within=max(filter(None, (keep.within, other.within)), default=None),
        where=keep.where or other.where,
        **{name: count or None for name, count in counts.items()},  # type: ignore[arg-type]
    )
    kept = reasons(rows, both, NOW)
    for single in (keep, other):
        for why, why_both in zip(reasons(rows, single, NOW), kept, strict=True):
            assert bool(why_both) >= bool(why)


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_days_begin_at_midnight_utc_wherever_a_version_was_made() -> None:
    tokyo, denver = (timezone(timedelta(hours=hours)) for hours in (9, -7))
    rows = [
        Row(3, datetime(2026, 11, 29, 9, 30, tzinfo=tokyo)),  # 00:30 of the 29th in UTC
        Row(2, datetime(2026, 11, 29, 8, 30, tzinfo=tokyo)),  # 23:30 of the 28th
        Row(1, datetime(2026, 11, 28, 16, 0, tzinfo=denver)),  # 23:00 of the 28th
    ]
    assert reasons(rows, Keep(daily=9), NOW) == [("daily 2026-11-29",), ("daily 2026-11-28",), ()]


def test_weeks_begin_on_monday_and_years_in_january() -> None:
    rows = [
        Row(n, day(text))
        for n, text in (
            (5, "2026-11-29"),  # Sunday
            (4, "2026-11-23"),  # Monday of the same week
            (3, "2026-11-22"),  # Sunday before
            (2, "2026-01-01"),
            (1, "2025-12-31"),  # Wednesday of the week of 2026-01-01
        )
    ]
    weekly = [bool(why) for why in reasons(rows, Keep(weekly=9), NOW)]
    assert weekly == [True, False, True, True, False]
    yearly = [bool(why) for why in reasons(rows, Keep(yearly=9), NOW)]
    assert yearly == [True, False, False, False, True]


def test_the_first_and_last_days_of_the_calendar_have_periods() -> None:
    rows = [Row(2, day("9999-12-31T23:59:59")), Row(1, day("0001-01-01"))]
    keep = Keep(hourly=9, daily=9, weekly=9, monthly=9, yearly=9)
    assert all(reasons(rows, keep, day("9999-12-31T23:59:59")))


def test_a_clock_far_ahead_lets_nothing_more_go() -> None:
    """`within` counts from the newest version, so that a pause or a wrong clock removes nothing."""
    rows = [Row(n, NOW - timedelta(days=9 - n)) for n in range(9, 0, -1)]
    keep = Keep(within=timedelta(days=3))
    now = [bool(why) for why in reasons(rows, keep, NOW)]
    assert now == [True] * 4 + [False] * 5
    assert [bool(why) for why in reasons(rows, keep, NOW + timedelta(days=10_000))] == now


def test_a_version_from_the_future_stays_and_takes_no_place_of_others() -> None:
    rows = [Row(3, NOW + timedelta(days=400)), Row(2, NOW), Row(1, NOW - timedelta(days=1))]
    why = reasons(rows, Keep(daily=1, within=timedelta(hours=1)), NOW)
    assert why == [
        ("its time is in the future",),
        ("within 1h", "daily 2026-11-29"),
        (),
    ]
    assert reasons(rows, Keep(every=5), NOW) == [(), (), ()]


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (timedelta(days=7), "7d"),
        (timedelta(hours=36), "1d12h"),
        (timedelta(seconds=61), "1m1s"),
        (timedelta(microseconds=5), "5us"),
    ],
)
def test_spans_are_shown_in_their_units(time: timedelta, text: str) -> None:
    assert span(time) == text


def test_all_rules_are_described() -> None:
    keep = Keep(
        last=1,
        every=2,
        within=timedelta(days=3),
        hourly=4,
        daily=5,
        weekly=6,
        monthly=7,
        yearly=8,
        where="x > 9",
    )
    assert describe(keep) == (
        "last 1, every 2, within 3d, hourly 4, daily 5, weekly 6, monthly 7, yearly 8, where x > 9"
    )
