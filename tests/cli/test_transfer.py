"""The verbs ``push`` and ``pull``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from casweights.testing.trees import read_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Json, Run

BACKUP = "backup"


def stored_bytes(store: str) -> int:
    return sum(
        path.stat().st_size
        for kind in ("packs", "snapshots")
        for path in (Path(store) / kind).iterdir()
    )


@pytest.mark.usefixtures("packs_apart")
def test_push_copies_all_names_and_versions(run: Run, run_json: Json, store: Path) -> None:
    new, old = run("log", "-q").stdout.split()
    (summary,) = run_json("push", BACKUP, "--create")
    assert summary == {
        "message_type": "summary",
        "source": str(store),
        "target": str(Path(BACKUP).absolute()),
        "versions": 2,
        "packs": 2,
        "moved_bytes": stored_bytes(BACKUP),
        "refs": {"heads/main": new, "tags/v1": old},
        "expired": 0,
        "tips": {"heads/main": new, "tags/v1": old},
    }
    (summary,) = run_json("push", BACKUP)
    assert (summary["versions"], summary["packs"], summary["refs"]) == (0, 0, {})
    assert run("log", "-q", "--store", BACKUP).stdout.split() == [new, old]
    run("verify", "--store", BACKUP)
    run("checkout", "main", "out", "--store", BACKUP)
    assert read_tree(Path("model")) == read_tree(Path("out"))


@pytest.mark.usefixtures("packs_apart")
def test_push_prints_the_names_and_the_size_for_people(run: Run, store: Path) -> None:
    new, old = run("log", "-q").stdout.split()
    first = run("push", BACKUP, "v1", "--create").stdout.splitlines()
    assert first[0] == f"{old[:12]}  is tag v1"
    assert first[1].startswith("1 version and 1 pack, ")
    assert first[1].endswith(f" copied to {Path(BACKUP).absolute()}")
    assert run("push", BACKUP).stdout.splitlines()[0] == f"{new[:12]}  is branch main"
    assert (
        run("push", BACKUP).stdout == f"Nothing to copy: {Path(BACKUP).absolute()} is up to date\n"
    )
    run("tag", "v2")
    assert run("push", BACKUP).stdout == f"{new[:12]}  is tag v2\n"
    run("tag", "v3")
    assert run("push", BACKUP, "-q").stdout == ""


def test_pull_copies_selected_and_all_names(
    run: Run, run_json: Json, store: Path, change: Callable[[], None]
) -> None:
    new, old = run("log", "-q").stdout.split()
    Path("elsewhere").mkdir()
    here = str(Path("elsewhere").absolute() / "store")
    run("pull", str(store), "--store", here, status=10)
    (summary,) = run_json("pull", str(store), "v1", "--store", here, "--create")
    assert summary["source"] == str(store)
    assert summary["target"] == here
    assert summary["refs"] == {"tags/v1": old}
    run("pull", str(store), CASWEIGHTS_STORE=here)
    assert run("log", "-q", "--store", here).stdout.split() == [new, old]
    assert run("init", "--json", "--store", here).stdout.count('"chunk_size": 65536') == 1


def test_pull_makes_the_store_where_init_would(run: Run, store: Path) -> None:
    other = shutil.move(store, "other")
    run("pull", other, status=10)
    run("pull", other, "--create")
    assert store.is_dir()
    assert len(run("log", "-q").stdout.split()) == 2


def test_diverged_branches_move_only_with_force(run: Run, store: Path, model: Path) -> None:
    run("push", BACKUP, "--create")
    (model / "mine.txt").write_text("mine")
    mine = run("commit", "model", "-q").stdout.strip()
    (model / "mine.txt").write_text("theirs")
    theirs = run("commit", "model", "-q", "--store", BACKUP).stdout.strip()
    error = json.loads(run("push", BACKUP, "--json", status=11).stderr)
    assert error["code"] == "ref-moved"
    assert "force" in error["message"]
    assert "force" in run("pull", BACKUP, status=11).stderr
    assert run("show", "-q").stdout.strip() == mine
    assert run("show", "-q", "--store", BACKUP).stdout.strip() == theirs
    run("push", BACKUP, "--force")
    assert run("show", "-q", "--store", BACKUP).stdout.strip() == mine
    run("branch", "main", "main~1", "--force")
    run("pull", BACKUP, "main", "--force")
    assert run("show", "-q").stdout.strip() == mine


def test_push_all_copies_versions_without_a_name(run: Run, run_json: Json, store: Path) -> None:
    run("branch", "gone", "main~1")
    (Path("model") / "gone.txt").write_text("gone")
    gone = run("commit", "model", "--branch", "gone", "-q").stdout.strip()
    run("branch", "gone", "--delete")
    (summary,) = run_json("push", BACKUP, "--create", "--all")
    assert summary["versions"] == 3
    assert set(summary["refs"]) == {"heads/main", "tags/v1"}
    assert run("show", gone, "-q", "--store", BACKUP).stdout == f"{gone}\n"
    run("verify", "--store", BACKUP)
    assert run_json("push", BACKUP, "--all")[0]["versions"] == 0


@pytest.mark.parametrize("verb", ["push", "pull"])
@pytest.mark.parametrize("more", ["main", "--shallow"])
def test_all_excludes_refs_and_shallow(run: Run, store: Path, verb: str, more: str) -> None:
    assert "--all" in run(verb, BACKUP, "--all", more, status=2).stderr


def test_pull_shallow_copies_one_version(run: Run, run_json: Json, store: Path) -> None:
    new, old = run("log", "-q").stdout.split()

    def pull(target: str, ref: str) -> Any:
        (summary,) = run_json(
            "pull",
            str(store),
            ref,
            "--shallow",
            "--create",
            "--store",
            str(Path(target).absolute()),
        )
        return summary

    summary = pull(BACKUP, "main")
    assert summary["versions"] == 1
    assert summary["refs"] == summary["tips"] == {"heads/main": new}
    run("checkout", "main", "out", "--store", BACKUP)
    assert read_tree(Path("model")) == read_tree(Path("out"))
    assert pull("second", "v1")["tips"] == {"tags/v1": old}
    summary = pull("third", "main~1")
    assert (summary["refs"], summary["tips"]) == ({}, {"main~1": old})
    assert run("show", old, "-q", "--store", "third").stdout == f"{old}\n"


@pytest.mark.parametrize("shallow", [(), ("--shallow",)])
def test_push_of_an_unknown_ref_makes_no_store(
    run: Run, store: Path, shallow: tuple[str, ...]
) -> None:
    assert "nobody" in run("push", BACKUP, "nobody", "--create", *shallow, status=1).stderr
    assert not Path(BACKUP).exists()


def test_stores_with_other_settings_are_refused(run: Run, store: Path) -> None:
    run("init", BACKUP, "--chunk-size", "1MiB")
    for args in (("push", BACKUP), ("push", BACKUP, "--all"), ("pull", BACKUP)):
        assert "casweights init --digest blake3" in run(*args, status=1).stderr


def test_push_refuses_to_make_a_store_in_a_folder_with_files(
    run: Run, store: Path, model: Path
) -> None:
    run("push", str(model), status=10)
    assert "has files in it" in run("push", "model", "--create", status=11).stderr


def test_unknown_refs_and_targets_are_errors(run: Run, store: Path) -> None:
    run("init", BACKUP, "--chunk-size", "64KiB")
    assert "nobody" in run("push", BACKUP, "nobody", status=1).stderr
    assert "nowhere" in run("push", "nowhere", status=10).stderr
