"""The verbs ``gc`` and ``undelete``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from casweights.stores.local import LocalStore
from tests.ages import DAY, GRACE, age

if TYPE_CHECKING:
    from tests.cli.conftest import Json, Run


@pytest.fixture
def lost(run: Run, store: Path) -> str:
    """The ID of an old version that nothing names."""
    Path("model/extra.txt").write_text("extra")
    version: str = run("commit", "model", "--branch", "lost", "-q").stdout.strip()
    run("branch", "lost", "--delete")
    age(LocalStore(store), GRACE + DAY)
    return version


def test_gc_says_what_it_would_do_and_does_it_with_apply(
    run: Run, run_json: Json, store: Path, lost: str
) -> None:
    assert run("gc").stdout.startswith("1 object of ")
    assert "would be set aside, 0 B would be deleted, " in run("gc").stdout
    assert (store / "snapshots" / lost).exists()
    (done,) = run_json("gc", "--apply")
    assert [found["name"] for found in done["objects"]] == [f"snapshots/{lost}"]
    assert not (store / "snapshots" / lost).exists()
    digits = done["collection"]
    line = run("gc").stdout.splitlines()[1]
    assert line.startswith(f"{digits}  1 object of ")
    assert " aside: can be deleted from 20" in line
    assert digits in run("show", lost, status=1).stderr
    age(LocalStore(store), GRACE + DAY)
    (done,) = run_json("gc", "--apply", "--finish")
    assert done["finished"] == [digits]
    assert run("undelete", digits, status=1).stderr.startswith("Error: the store has no collection")


def test_undelete_brings_a_collection_back(run: Run, store: Path, lost: str) -> None:
    digits = run("gc", "--apply", "-q").stdout.strip()
    result = run("undelete", digits)
    assert result.stdout.startswith("1 version in 1 object of ")
    assert "are set aside again later: `casweights branch NAME ID`" in result.stderr
    assert run("branch", "back", lost, "-q").stdout == f"{lost}\n"
    run("verify")


def test_undelete_brings_a_version_back_under_a_name(
    run: Run, run_json: Json, store: Path, lost: str
) -> None:
    run("gc", "--apply")
    hint = run("show", lost, status=1).stderr
    assert f"`casweights undelete {lost} --as NAME` brings it back under a name" in hint
    assert "needs a name" in run("undelete", lost[:10], status=1).stderr
    done = run("undelete", lost[:16], "--as", "found").stdout
    assert done == f"{lost[:12]}  is found\n"
    assert run("branch", "-q").stdout.split() == ["found", "main"]
    assert run_json("undelete", lost, "--as", "tags/kept") == {"name": "kept", "id": lost}
    assert "kept" in run("tag", "-q").stdout.split()
    assert "exists already" in run("undelete", lost, "--as", "main", status=11).stderr
    run("verify")


def test_undelete_says_what_is_gone(run: Run, store: Path, lost: str) -> None:
    for _ in range(2):
        run("gc", "--apply")
        age(LocalStore(store), GRACE + DAY)
    error = run("undelete", lost, "--as", "found", status=1).stderr
    assert f"the store has no snapshot {lost}" in error
    assert "deleted for good" in error
    hint = run("undelete", lost[:16], status=1).stderr
    assert "`casweights undelete ID --as NAME`" in hint


def test_a_plan_limits_what_is_set_aside(run: Run, run_json: Json, store: Path, lost: str) -> None:
    assert run("gc").stderr == "Hint: nothing was changed: --apply does it\n"
    told = run("gc", "--plan", "plan.json").stderr
    assert told == "Hint: nothing was changed: --apply plan.json does it\n"
    plan = json.loads(Path("plan.json").read_text())
    assert [found["name"] for found in plan["objects"]] == [f"snapshots/{lost}"]
    Path("empty.json").write_text(json.dumps({**plan, "objects": []}))
    assert run_json("gc", "--apply", "empty.json")[0]["objects"] == []
    assert "for another store" in run("gc", "--apply", other(plan), status=1).stderr
    lacking = run("gc", "--apply", "none.json", status=1).stderr
    assert lacking == "Error: cannot read the plan none.json: No such file or directory\n"
    Path("bad.json").write_text("[]")
    assert "is no plan" in run("gc", "--apply", "bad.json", status=1).stderr
    applied = run("gc", "--apply", "plan.json")
    assert applied.stdout.startswith("1 object of ")
    assert applied.stderr == run("gc").stderr == ""  # nothing is left to do
    assert "exclude" in run("gc", "--plan", "p", "--apply", "plan.json", status=2).stderr


def test_a_plan_limits_what_is_deleted(run: Run, run_json: Json, store: Path, lost: str) -> None:
    """A plan that was made before the grace time was over deletes nothing when it is over."""
    digits = run("gc", "--apply", "-q").stdout.strip()
    run("gc", "--plan", "early.json")
    age(LocalStore(store), GRACE + DAY)
    run("gc", "--plan", "late.json")
    assert run_json("gc", "--apply", "early.json")[0]["finished"] == []
    assert run_json("gc", "--apply", "late.json")[0]["finished"] == [digits]


def other(plan: dict[str, object]) -> str:
    Path("other.json").write_text(json.dumps({**plan, "store_id": "0" * 32}))
    return "other.json"


def test_a_short_grace_time_needs_the_name_of_the_store(
    run: Run, run_json: Json, store: Path, lost: str
) -> None:
    for options in (["--grace", "0"], ["--grace", "23h"], ["--grace", "5m", "--confirm", "yes"]):
        assert "confirm with its name" in run("gc", "--apply", *options, status=1).stderr
    assert "is not a span of time" in run("gc", "--grace", "week", status=2).stderr
    assert run_json("gc", "--grace", "0", "--confirm", str(store))[0]["objects"] != []
    assert run_json("gc", "--grace", "36h")[0]["objects"] != []
    assert run_json("gc", "--grace", "9d")[0]["objects"] == []


@pytest.mark.usefixtures("lost")
def test_stats_tell_what_holds_the_bytes(run: Run, run_json: Json) -> None:
    before = run_json("stats", "--reclaimable")
    assert before["free"] > 0
    assert "that `casweights gc --apply` sets aside" in run("stats", "--reclaimable").stdout
    (done,) = run_json("gc", "--apply")
    after = run_json("stats", "--reclaimable")
    assert (done["bytes"], after["free"]) == (before["free"], 0)
    assert after["total"] == before["total"] - before["free"]
    (pending,) = after["aside"]
    assert (pending["collection"], pending["bytes"]) == (done["collection"], done["bytes"])
    assert f"as collection {done['collection']}" in run("stats", "--reclaimable").stdout
    assert "exclude each other" in run("stats", "--reclaimable", "--versions", status=2).stderr
