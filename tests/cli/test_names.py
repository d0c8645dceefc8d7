"""The verbs ``tag`` and ``branch``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Json, Run


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_names_can_be_made_listed_and_deleted(
    run: Run, run_json: Json, store: Path, kind: str
) -> None:
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


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_deleted_names_are_listed_and_come_back(
    run: Run, run_json: Json, store: Path, kind: str
) -> None:
    new, old = run("log", "-q").stdout.split()
    run(kind, "here", "main~1")
    assert run_json(kind, "--deleted") == []
    run(kind, "here", "--delete")
    [row] = run_json(kind, "--deleted")
    assert (row["name"], row["id"], row["message"]) == ("here", old, "first")
    assert run(kind, "--deleted", "-q").stdout == "here\n"
    assert run_json({"tag": "branch", "branch": "tag"}[kind], "--deleted") == []
    assert "here" not in run(kind, "-q").stdout.split()
    prefix = {"tag": "tags/", "branch": "heads/"}[kind]
    for name in ("here", f"{prefix}here"):
        assert f"`casweights undelete {name}` brings it back" in run("log", name, status=1).stderr
    assert run("undelete", "here").stdout == f"{old[:12]}  is here again\n"
    assert run(kind, "--deleted", "-q").stdout == ""
    run(kind, "here", "--delete")
    run(kind, "here", "main")
    error = run("undelete", "here", status=11).stderr
    assert "in use again" in error
    assert "--as NAME" in error
    assert run("undelete", "here", "--as", "there", "-q").stdout == f"{old}\n"
    names = {row["name"]: row["id"] for row in run_json(kind)}
    assert names.items() >= {"here": new, "there": old}.items()


def test_names_that_were_not_deleted_cannot_come_back(run: Run, store: Path) -> None:
    run("branch", "mine")
    run("branch", "mine", "--delete")
    result = run("undelete", "mime", status=1)
    assert "no deleted branch or tag 'mime'" in result.stderr
    assert "did you mean mine?" in result.stderr
    assert "no deleted" in run("undelete", "main", status=1).stderr


def test_branches_are_listed_in_aligned_columns(run: Run, store: Path) -> None:
    run("branch", "a-longer-name", "v1")
    lines = run("branch").stdout.splitlines()
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"a-longer-name  [0-9a-f]{{12}}  {moment}  first", lines[0])
    assert re.fullmatch(rf"main           [0-9a-f]{{12}}  {moment}  second", lines[1])


def test_a_tag_at_another_version_is_refused(run: Run, store: Path) -> None:
    assert "v1" in run("tag", "v1", "main", status=11).stderr
    run("tag", "v1", "main~1")  # the version that it names already
    assert run("show", "v1", "-q").stdout == run("show", "main~", "-q").stdout


def test_a_branch_moves_only_with_force(run: Run, store: Path) -> None:
    run("branch", "dev", "v1")
    assert "'dev' exists already" in run("branch", "dev", "main", status=11).stderr
    assert run("show", "dev", "-q").stdout == run("show", "v1", "-q").stdout
    run("branch", "dev", "main", "--force")
    assert run("show", "dev", "-q").stdout == run("show", "main", "-q").stdout
    run("branch", "new", "v1", "--force")


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_missing_names_and_refs_are_errors(run: Run, store: Path, kind: str) -> None:
    assert "gone" in run(kind, "gone", "--delete", status=1).stderr
    assert "nowhere" in run(kind, "new", "nowhere", status=1).stderr


@pytest.mark.parametrize("kind", ["tag", "branch"])
@pytest.mark.parametrize("name", ["a b", "../x", ".hidden", "x.ref"])
def test_invalid_names_are_refused(run: Run, store: Path, kind: str, name: str) -> None:
    assert "letters" in run(kind, name, status=1).stderr


@pytest.mark.parametrize(
    "args",
    [
        ("tag", "--delete"),
        ("tag", "v1", "--deleted"),
        ("branch", "--deleted", "--delete"),
        ("branch", "main", "--deleted"),
        ("branch", "--deleted", "--force"),
        ("undelete",),
        ("tag", "v1", "main", "--delete"),
        ("branch", "--delete"),
        ("branch", "main", "v1", "--delete"),
        ("branch", "main", "--delete", "--force"),
        ("branch", "--force"),
        ("tag", "v2", "main", "more"),
    ],
)
def test_contradictory_options_are_usage_errors_and_change_nothing(
    run: Run, store: Path, args: tuple[str, ...]
) -> None:
    run(*args, status=2)
    assert run("tag", "-q").stdout + run("branch", "-q").stdout == "v1\nmain\n"


def test_a_branch_and_a_tag_of_one_name_need_a_prefix(run: Run, store: Path) -> None:
    run("branch", "v1", "main")
    assert "heads/v1" in run("show", "v1", status=1).stderr
    assert run("show", "tags/v1", "-q").stdout == run("show", "main~1", "-q").stdout
