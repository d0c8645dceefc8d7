"""``tag`` and ``branch``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Json, Run


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_make_list_delete(run: Run, run_json: Json, store: Path, kind: str) -> None:
    new, old = run("log", "-q").stdout.split()
    assert run(kind, "here").stdout == f"{new[:12]}  is {kind} here\n"
    assert run(kind, "there", "main~1", "-q").stdout == f"{old}\n"
    assert run_json(kind, "json", "v1") == {"name": "json", "id": old}
    names = {row["name"]: row["id"] for row in run_json(kind)}
    assert names.items() >= {"here": new, "there": old, "json": old}.items()
    assert run(kind, "-q").stdout.split() == sorted(names)
    assert run(kind, "here", "--delete").stdout == f"{kind} here is deleted\n"
    assert run(kind, "there", "--delete", "-q").stdout == ""
    assert run_json(kind, "json", "--delete") == {"name": "json", "deleted": True}
    assert {row["name"] for row in run_json(kind)} == names.keys() - {"here", "there", "json"}
    assert len(run("log", "-q").stdout.split()) == 2


def test_the_list_for_people(run: Run, store: Path) -> None:
    run("branch", "a-longer-name", "v1")
    lines = run("branch").stdout.splitlines()
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"a-longer-name  [0-9a-f]{{12}}  {moment}  first", lines[0])
    assert re.fullmatch(rf"main           [0-9a-f]{{12}}  {moment}  second", lines[1])


def test_tags_do_not_move(run: Run, store: Path) -> None:
    assert "v1" in run("tag", "v1", "main", status=11).stderr
    run("tag", "v1", "main~1")  # where it is already
    assert run("show", "v1", "-q").stdout == run("show", "main~", "-q").stdout


def test_branches_move_by_force_alone(run: Run, store: Path) -> None:
    run("branch", "dev", "v1")
    assert "'dev' is there already" in run("branch", "dev", "main", status=11).stderr
    assert run("show", "dev", "-q").stdout == run("show", "v1", "-q").stdout
    run("branch", "dev", "main", "--force")
    assert run("show", "dev", "-q").stdout == run("show", "main", "-q").stdout
    run("branch", "new", "v1", "--force")


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_what_is_not_there(run: Run, store: Path, kind: str) -> None:
    assert "gone" in run(kind, "gone", "--delete", status=1).stderr
    assert "nowhere" in run(kind, "new", "nowhere", status=1).stderr


@pytest.mark.parametrize("kind", ["tag", "branch"])
@pytest.mark.parametrize("name", ["a b", "../x", ".hidden", "x.ref"])
def test_impossible_names(run: Run, store: Path, kind: str, name: str) -> None:
    assert "letters" in run(kind, name, status=1).stderr


@pytest.mark.parametrize(
    "args",
    [
        ("tag", "--delete"),
        ("tag", "v1", "main", "--delete"),
        ("branch", "--delete"),
        ("branch", "main", "v1", "--delete"),
        ("branch", "main", "--delete", "--force"),
        ("branch", "--force"),
        ("tag", "v2", "main", "more"),
    ],
)
def test_nonsense(run: Run, store: Path, args: tuple[str, ...]) -> None:
    run(*args, status=2)
    assert run("tag", "-q").stdout + run("branch", "-q").stdout == "v1\nmain\n"


def test_a_name_that_is_both(run: Run, store: Path) -> None:
    run("branch", "v1", "main")
    assert "heads/v1" in run("show", "v1", status=1).stderr
    assert run("show", "tags/v1", "-q").stdout == run("show", "main~1", "-q").stdout
