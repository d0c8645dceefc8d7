"""Metrics, as the real prometheus_client shows them."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

import casweights
from casweights.ids import SnapshotId
from casweights.instrumentation.prometheus import Metrics
from tests.instrumentation.samples import COMMIT, EVENTS, NEW, POLL, PUBLISH, SYNC

if TYPE_CHECKING:
    from pathlib import Path

SCRIPTED = """\
# HELP casweights_uploaded_bytes_total Bytes stored for versions, encoded.
# TYPE casweights_uploaded_bytes_total counter
casweights_uploaded_bytes_total 520000.0
# HELP casweights_downloaded_bytes_total Stored bytes read for checkouts and syncs.
# TYPE casweights_downloaded_bytes_total counter
casweights_downloaded_bytes_total 325000.0
# HELP casweights_transferred_bytes_total Bytes transferred from one store to another.
# TYPE casweights_transferred_bytes_total counter
casweights_transferred_bytes_total 1.25e+06
# HELP casweights_versions_total Versions handled.
# TYPE casweights_versions_total counter
casweights_versions_total{operation="commit"} 2.0
casweights_versions_total{operation="checkout"} 1.0
casweights_versions_total{operation="transfer"} 7.0
casweights_versions_total{operation="sync"} 1.0
# HELP casweights_polls_total Reads of a branch's head.
# TYPE casweights_polls_total counter
casweights_polls_total 1.0
# HELP casweights_skipped_steps_total Published steps left out in favour of later ones.
# TYPE casweights_skipped_steps_total counter
casweights_skipped_steps_total 2.0
# HELP casweights_density_ratio Share of elements that changed in the last version.
# TYPE casweights_density_ratio gauge
casweights_density_ratio{operation="publish"} 0.0075
casweights_density_ratio{operation="sync"} 0.015
# HELP casweights_lag_versions Moves of the branch that the last sync covered.
# TYPE casweights_lag_versions gauge
casweights_lag_versions 3.0
# HELP casweights_last_step Step number of the last published version.
# TYPE casweights_last_step gauge
casweights_last_step 120.0
"""
SECONDS = {
    "scan": 0.002,
    "encode": 0.02,
    "upload": 2.0,
    "poll": 0.25,
    "download": 0.5,
    "decode": 0.05,
    "verify": 0.4,
    "apply": 0.004,
}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"casweights_{name}", labels)


def exposed(registry: CollectorRegistry) -> list[str]:
    """The text that Prometheus reads, without the creation times of metrics."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_every_event_is_counted(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    for event, args in EVENTS.items():
        getattr(metrics, event)(*args)
    lines = exposed(registry)
    assert [line for line in lines if "stage_seconds" not in line] == SCRIPTED.splitlines()
    assert {line for line in lines if "stage_seconds_sum" in line} == {
        f'casweights_stage_seconds_sum{{stage="{stage}"}} {seconds}'
        for stage, seconds in SECONDS.items()
    }
    for stage in SECONDS:
        assert value(registry, "stage_seconds_count", stage=stage) == 1
    assert 'casweights_stage_seconds_bucket{le="0.003",stage="apply"} 0.0' in lines
    assert 'casweights_stage_seconds_bucket{le="0.01",stage="apply"} 1.0' in lines
    assert 'casweights_stage_seconds_bucket{le="1.0",stage="upload"} 0.0' in lines
    assert 'casweights_stage_seconds_bucket{le="3.0",stage="upload"} 1.0' in lines


def test_metrics_of_a_real_store_add_up(registry: CollectorRegistry, tmp_path: Path) -> None:
    metrics = Metrics(registry)
    state = {"weight": torch.arange(100_000)}
    with (
        casweights.open(tmp_path / "a", create=True, reporter=metrics) as store,
        casweights.open(tmp_path / "b", create=True, reporter=metrics) as other,
    ):
        store.commit(state)
        first = value(registry, "uploaded_bytes_total")
        assert first
        state["weight"][0] = 7
        store.commit(state)
        second = value(registry, "uploaded_bytes_total")
        assert second
        store.checkout("main", tmp_path / "out")
        store.push(other)
    assert first < second <= 2 * state["weight"].nbytes
    fetched = value(registry, "downloaded_bytes_total")
    moved = value(registry, "transferred_bytes_total")
    assert fetched
    assert moved
    assert moved > second  # packs and the versions' own objects
    lines = exposed(registry)
    assert 'casweights_versions_total{operation="commit"} 2.0' in lines
    assert 'casweights_versions_total{operation="checkout"} 1.0' in lines
    assert 'casweights_versions_total{operation="transfer"} 2.0' in lines
    assert f"casweights_uploaded_bytes_total {second}" in lines


def test_a_version_counts_once(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.committed(replace(COMMIT, snapshot=NEW, stored_bytes=PUBLISH.stored_bytes))
    metrics.published(PUBLISH)
    assert value(registry, "versions_total", operation="commit") == 1
    assert value(registry, "uploaded_bytes_total") == PUBLISH.stored_bytes
    assert value(registry, "stage_seconds_count", stage="upload") == 1


def test_values_are_nan_before_the_first_event(registry: CollectorRegistry) -> None:
    Metrics(registry)
    lines = exposed(registry)
    assert "casweights_last_step NaN" in lines
    assert "casweights_lag_versions NaN" in lines
    assert not any(line.startswith("casweights_density") for line in lines)


def test_unknown_values_are_nan_or_stay(registry: CollectorRegistry) -> None:
    metrics = Metrics(registry)
    metrics.published(PUBLISH)
    metrics.published(
        replace(PUBLISH, snapshot=SnapshotId(bytes(32)), step=None, changed_elements=None)
    )
    assert value(registry, "last_step") == 120  # the last one that is known
    density = value(registry, "density_ratio", operation="publish")
    assert density is not None
    assert math.isnan(density)
    metrics.synced(replace(SYNC, elements=0, changed_elements=0))
    assert value(registry, "density_ratio", operation="sync") == 0


def test_events_of_several_threads_are_all_counted(registry: CollectorRegistry) -> None:
    metrics, runs, threads = Metrics(registry), 50, 8

    def publish(thread: int) -> None:
        for run in range(runs):
            version = SnapshotId(bytes([thread, run]) * 16)
            metrics.committed(replace(COMMIT, snapshot=version, stored_bytes=10))
            metrics.published(replace(PUBLISH, snapshot=version, stored_bytes=10))
            metrics.polled(POLL)
            metrics.synced(SYNC)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(publish, range(threads)))
    total = runs * threads
    assert value(registry, "versions_total", operation="commit") == total
    assert value(registry, "versions_total", operation="sync") == total
    assert value(registry, "uploaded_bytes_total") == 10 * total
    assert value(registry, "downloaded_bytes_total") == SYNC.fetched_bytes * total
    assert value(registry, "skipped_steps_total") == 2 * total
    assert value(registry, "polls_total") == total
    assert value(registry, "stage_seconds_count", stage="scan") == total


def test_the_namespace_and_the_registry_can_be_chosen() -> None:
    metrics = Metrics(namespace="replica_test")
    metrics.polled(POLL)
    assert REGISTRY.get_sample_value("replica_test_polls_total") == 1
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(namespace="replica_test")


def test_without_the_library_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "import casweights.instrumentation\n"
        "import casweights.instrumentation.prometheus\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.endswith(
        "ImportError: casweights.instrumentation.prometheus needs prometheus_client: "
        "pip install 'casweights[metrics]'\n"
    )
