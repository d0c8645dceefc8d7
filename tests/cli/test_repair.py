"""The verb ``repair``, and the options of ``verify`` that choose a part."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from casweights.testing.trees import read_tree
from tests.cli.test_verify import damage, with_frames

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Json, Run

pytestmark = pytest.mark.usefixtures("both_forms")


@pytest.fixture
def damaged(store: Path) -> Path:
    """A store with a flipped bit in the first frame of its largest object."""
    damage(max(with_frames(store), key=lambda path: path.stat().st_size), 100)
    return store


def test_a_sound_store_needs_no_repair(run: Run, run_json: Json, store: Path) -> None:
    before = read_tree(store)
    assert run("repair").stdout == "nothing is damaged or missing\n"
    assert run("repair", "--apply").stdout == "nothing is damaged or missing\n"
    assert run("repair", "-q").stdout == ""
    summary = run_json("repair")[-1]
    assert (summary["damaged"], summary["lost"], summary["sources"]) == (0, [], {})
    assert read_tree(store) == before


def test_a_dry_run_says_what_a_directory_would_mend(
    run: Run, run_json: Json, damaged: Path
) -> None:
    before = read_tree(damaged)
    text = run("repair", "--from", "model", status=13).stdout
    assert "1 of 1 missing chunk can be rebuilt\n  1 from model\n" in text
    assert text.endswith("nothing was written: repeat the command with --apply\n")
    summary = run_json("repair", "--from", "model", status=13)[-1]
    assert (summary["applied"], summary["sources"]) == (False, {"model": 1})
    assert read_tree(damaged) == before


def test_apply_mends_and_exits_with_0(run: Run, run_json: Json, damaged: Path) -> None:
    run("verify", status=13)
    summary = run_json("repair", "--from", "model", "--apply")[-1]
    assert (summary["applied"], summary["rebuilt_chunks"], summary["lost"]) == (True, 1, [])
    assert summary["replaced"] == 1
    run("verify")
    run("checkout", "main", "out")


def test_what_stays_lost_is_named_and_exits_with_13(
    run: Run, run_json: Json, damaged: Path
) -> None:
    for options in ((), ("--apply",), ("--apply",)):
        *lines, summary = run_json("repair", *options, status=13)
        lost = [line for line in lines if line["message_type"] == "lost"]
        assert [line["id"] for line in lost] == summary["lost"] != []
        assert all(line["chunks"] == 1 for line in lost)
    assert "Lost: " in run("repair", status=13).stdout
    lines = run("repair", "-q", status=13).stdout.splitlines()
    assert sorted(line[6:18] for line in lines) == sorted(i[:12] for i in summary["lost"])
    assert run_json("verify", status=13)[-1]["lost"] == len(summary["lost"])
    assert "(a known loss, recorded in lost/" in run("verify", status=13).stdout


def test_sources_are_checked(run: Run, damaged: Path) -> None:
    assert "nowhere" in run("repair", "--from", "nowhere", status=1).stderr
    assert "hf://NAMESPACE/NAME" in run("repair", "--from", "hf://x", status=1).stderr


def test_verify_of_a_part(run: Run, run_json: Json, damaged: Path) -> None:
    for since in ("2099-01-01", "2099-01-01T10:00", "main"):
        *_, summary = run_json("verify", "--since", since)
        assert (summary["checked_frames"], summary["versions"]) == (0, 0)
        assert summary["frames"] > 0
    for since in ("2000-01-01", "1h", "9w", "2000-01-01T10:00:00Z"):
        assert run_json("verify", "--since", since, status=13)[-1]["versions"] == 2
    assert run_json("verify", "--sample", "100%", status=13)[-1]["damaged"] == 1
    assert "1 of 13 frames" in run("verify", "--sample", "0.001%").stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [("--since", "2026-13-01"), ("--sample", "5"), ("--sample", "0%"), ("--sample", "101%")],
)
def test_wrong_parts_are_errors_of_usage(run: Run, store: Path, option: str, value: str) -> None:
    error = json.loads(run("verify", option, value, "--json", status=2).stderr)
    assert value in error["message"]


def test_since_names_no_version(run: Run, store: Path) -> None:
    assert "nothing" in run("verify", "--since", "nothing", status=1).stderr
