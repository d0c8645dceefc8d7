"""``docs/metrics.md`` agrees with the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from casweights import results
from casweights.events import Stage
from casweights.instrumentation.prometheus import Metrics
from tests.instrumentation.samples import EVENTS, methods

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
STATS = sorted(
    type(args[0]).__name__ for args in EVENTS.values() if not isinstance(args[0], Stage | str)
)


def rows(first: str, text: str = PAGE) -> list[list[str]]:
    """The cells of the last table whose first column has the heading `first`."""
    table = re.findall(rf"^\| {first} \|.*\n\|[ |-]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)[-1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return [[re.sub(r"^`([^`]+)`$", r"\1", cell) for cell in row] for row in cells]


def test_the_page_lists_every_event() -> None:
    listed = {event: argument for event, argument, _ in rows("event")}
    assert sorted(listed) == sorted(methods())
    for event, args in EVENTS.items():
        if len(args) == 1 and not isinstance(args[0], Stage):
            assert listed[event] == type(args[0]).__name__


def test_the_page_lists_every_stage() -> None:
    listed = rows("stage", PAGE.split("\n### ")[0])
    assert [stage for stage, _ in listed] == list(Stage)


def test_every_kind_of_stats_has_a_section() -> None:
    assert re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE) == [
        type(args[0]).__name__ for args in EVENTS.values() if not isinstance(args[0], Stage | str)
    ]
    assert len(STATS) == PAGE.count("\n### ")


@pytest.mark.parametrize("stats", STATS)
def test_the_page_lists_every_field_with_its_unit(stats: str) -> None:
    section = PAGE.split(f"\n### `{stats}`\n", 1)[1].split("\n#", 1)[0]
    listed = {field: unit for field, unit, _ in rows("field", section)}
    kind = getattr(results, stats)
    assert list(listed) == [field.name for field in fields(kind)]
    for field in fields(kind):
        unit = listed[field.name]
        assert ("none" in unit) == ("None" in str(field.type)), field.name
        for suffix in ("bytes", "seconds"):
            assert (unit == suffix) == field.name.endswith(suffix), field.name


def test_the_page_lists_every_metric() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for event, args in EVENTS.items():
        getattr(metrics, event)(*args)
    listed = {name: cells for name, *cells in rows("metric")}
    made = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in registry.collect()
    }
    assert list(listed) == list(made)
    for name, family in made.items():
        kind, unit, label, meaning = listed[name]
        assert kind == family.type
        assert unit == family.unit or not family.unit
        assert unit in name or unit == "number"
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        assert labels == ({label} if label else set())
        if label == "operation":
            for sample in family.samples:
                assert f"`{sample.labels[label]}`" in meaning


def test_the_page_lists_the_stages_of_the_histogram() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for event, args in EVENTS.items():
        getattr(metrics, event)(*args)
    listed = dict(rows("stage"))
    made = {
        sample.labels["stage"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "casweights_stage_seconds_sum"
    }
    assert list(listed) == list(made)
    by_name = {type(args[0]).__name__: args[0] for args in EVENTS.values()}
    for stage, source in listed.items():
        stats, _, field = source.partition(".")
        assert made[stage] == getattr(by_name[stats], field)
