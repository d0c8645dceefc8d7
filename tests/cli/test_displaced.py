"""The verbs that list and drop displaced versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.database.moves import encode_move
from casweights.format import names

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.ids import SnapshotId
    from tests.cli.conftest import Json, Run


@pytest.fixture
def displaced(store: Path, model: Path) -> SnapshotId:
    """A version that was displaced from main by one with the same parent."""
    with casweights.open(store) as repo:
        head = repo.database.refs.head("main")
        assert head is not None
        repo.branch("side", "main~1")
        other = repo.commit({"n": 1}, branch="side").id
        name = names.move_name(names.HEADS, "main", head.position, other)  # sorts first
        repo.database.store.put(name, [encode_move(other)])
        repo.delete_branch("side")
        repo.delete_tag("v1")
        assert repo.branches() == {"main": other}
        assert repo.displaced() == {"main": (head.snapshot,)}
    return head.snapshot


def test_log_and_branch_list_a_displaced_version(
    run: Run, run_json: Json, displaced: SnapshotId
) -> None:
    *rows, last = run_json("log")
    assert (last["id"], last["displaced"]) == (str(displaced), ["main"])
    assert all(row["displaced"] == [] for row in rows)
    assert str(displaced) not in {row["id"] for row in rows}
    assert [row["id"] for row in run_json("log", "-n", "1")][1:] == [str(displaced)]
    assert str(displaced) not in run("log", "-q").stdout
    shown = run("log")
    assert "displaced from main" in shown.stdout
    assert "casweights branch" in shown.stderr
    assert [row["displaced"] for row in run_json("branch")] == [[str(displaced)]]
    assert "main (displaced)" in run("branch").stdout
    assert run("branch", "-q").stdout.split() == ["main"]


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_a_branch_or_tag_ends_the_listing(
    run: Run, run_json: Json, displaced: SnapshotId, kind: str
) -> None:
    run(kind, "kept", str(displaced))
    assert all(row["displaced"] == [] for row in [*run_json("log"), *run_json("branch")])


def test_a_branch_at_a_later_version_ends_the_listing(
    store: Path, run_json: Json, displaced: SnapshotId
) -> None:
    with casweights.open(store) as repo:
        repo.branch("side", displaced)
        child = repo.commit({"n": 2}, branch="side").id
        repo.branch("main", child, force=True)
        repo.delete_branch("side")
    assert [row["displaced"] for row in run_json("branch")] == [[]]


def test_drop_ends_the_listing_and_keeps_the_version(
    run: Run, run_json: Json, displaced: SnapshotId
) -> None:
    assert run_json("branch", "main", str(displaced), "--drop") == {
        "name": "main",
        "id": str(displaced),
        "dropped": True,
    }
    assert all(row["displaced"] == [] for row in [*run_json("log"), *run_json("branch")])
    assert run_json("show", str(displaced))["id"] == str(displaced)
    run("branch", "main", str(displaced), "--drop", status=1)
    run("branch", "main", "--drop", status=2)
