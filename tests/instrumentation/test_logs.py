"""Log lines for people, and attributes for programs."""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.instrumentation.logs import Logs
from tests.instrumentation.samples import (
    CHECKOUT,
    COMMIT,
    EVENTS,
    NEW,
    OLD,
    POLL,
    PUBLISH,
    SYNC,
    TRANSFER,
    methods,
)

if TYPE_CHECKING:
    from pathlib import Path

LINES = {
    "committed": "committed 010101010101: 20 new chunks, 0.50 MB stored for 2.00 MB",
    "checked_out": "checked out 010101010101: 3 of 5 files written, 2 deleted, 0.30 MB fetched "
    "for 2.00 MB",
    "transferred": "transferred 1.25 MB: versions 7, packs 4, moved heads/main, tags/v1",
    "published": "published abababababab: step 120, skipped 2, 0.75% changed, 0.02 MB stored for "
    "4.00 MB, scan 0.002 s, encode 0.020 s, upload 2.000 s",
    "polled": "polled: abababababab in 0.250 s",
    "synced": "synced abababababab: from 010101010101, lag 3, 1.5% changed, 0.03 MB fetched for "
    "4.00 MB, download 0.500 s, decode 0.050 s, verify 0.400 s, apply 0.004 s",
}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="casweights")
    return caplog


LEVELS = {"polled": logging.DEBUG, "warned": logging.WARNING}


@pytest.mark.parametrize("event", methods())
def test_results_have_a_line_and_progress_has_none(
    log: pytest.LogCaptureFixture, event: str
) -> None:
    getattr(Logs(), event)(*EVENTS[event])
    lines = LINES | {"warned": EVENTS["warned"][1]}
    assert log.messages == ([lines[event]] if event in lines else [])
    for record in log.records:
        assert record.name == "casweights"
        assert record.levelno == LEVELS.get(event, logging.INFO)
        if event == "warned":
            assert (record.__dict__["event_name"], record.__dict__["code"]) == (event, "bad-index")


@pytest.mark.parametrize("event", LINES)
def test_records_have_every_field(log: pytest.LogCaptureFixture, event: str) -> None:
    (stats,) = EVENTS[event]
    getattr(Logs(), event)(stats)
    (record,) = log.records
    assert record.__dict__["event_name"] == event
    for field in fields(stats):
        value = record.__dict__[field.name]
        assert json.loads(json.dumps(value)) == value  # a type of JSON
        if field.name not in ("snapshot", "previous", "refs", "tips", "skipped"):
            assert value == getattr(stats, field.name)


def test_ids_and_lists_are_attributes_of_json_types(log: pytest.LogCaptureFixture) -> None:
    logs = Logs()
    logs.synced(SYNC)
    logs.transferred(TRANSFER)
    logs.published(PUBLISH)
    synced, transferred, published = (record.__dict__ for record in log.records)
    assert (synced["snapshot"], synced["previous"]) == (str(NEW), str(OLD))
    assert transferred["refs"] == {"heads/main": str(NEW), "tags/v1": str(OLD)}
    assert published["skipped"] == [118, None]


def test_unknown_values_are_named_as_unknown(log: pytest.LogCaptureFixture) -> None:
    logs = Logs()
    logs.published(replace(PUBLISH, step=None, skipped=(), changed_elements=None))
    logs.polled(replace(POLL, snapshot=None))
    logs.synced(replace(SYNC, previous=None, elements=0, changed_elements=0))
    logs.transferred(replace(TRANSFER, refs={}))
    published, polled, synced, transferred = log.messages
    assert "step unknown, skipped 0, unknown share changed" in published
    assert polled == "polled: no branch in 0.250 s"
    assert "from unknown, lag 3, 0% changed" in synced
    assert transferred.endswith("moved nothing")
    assert log.records[1].__dict__["snapshot"] is None


def test_polls_are_silent_at_info(log: pytest.LogCaptureFixture) -> None:
    log.set_level(logging.INFO, logger="casweights")
    logs = Logs()
    logs.polled(POLL)
    logs.committed(COMMIT)
    logs.checked_out(CHECKOUT)
    assert log.messages == [LINES["committed"], LINES["checked_out"]]


def test_a_real_store_logs_its_results(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with casweights.open(tmp_path / "store", create=True, reporter=Logs()) as store:
        snapshot = store.commit({"weight": torch.arange(1000)})
        store.checkout("main", tmp_path / "out")
    committed, checked_out = log.records
    assert committed.__dict__["snapshot"] == checked_out.__dict__["snapshot"] == str(snapshot.id)
    assert log.messages[0].startswith(f"committed {str(snapshot.id)[:12]}: 1 new chunks")
    assert checked_out.__dict__["written_files"] == len(snapshot.files)
