"""``push``, ``pull``, ``copy`` and ``clone``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

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


def test_push(run: Run, run_json: Json, store: Path) -> None:
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
    }
    (summary,) = run_json("push", BACKUP)
    assert (summary["versions"], summary["packs"], summary["refs"]) == (0, 0, {})
    assert run("log", "-q", "--store", BACKUP).stdout.split() == [new, old]
    run("verify", "--store", BACKUP)
    run("checkout", "main", "out", "--store", BACKUP)
    assert read_tree(Path("model")) == read_tree(Path("out"))


def test_what_people_read(run: Run, store: Path) -> None:
    new, old = run("log", "-q").stdout.split()
    first = run("push", BACKUP, "v1", "--create").stdout.splitlines()
    assert first[0] == f"{old[:12]}  is tag v1"
    assert first[1].startswith("1 version and 1 pack, ")
    assert first[1].endswith(f" came to {Path(BACKUP).absolute()}")
    assert run("push", BACKUP).stdout.splitlines()[0] == f"{new[:12]}  is branch main"
    assert run("push", BACKUP).stdout == f"All of it is in {Path(BACKUP).absolute()} already\n"
    run("tag", "v2")
    assert run("push", BACKUP).stdout == f"{new[:12]}  is tag v2\n"
    run("tag", "v3")
    assert run("push", BACKUP, "-q").stdout == ""


def test_pull(run: Run, run_json: Json, store: Path, change: Callable[[], None]) -> None:
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


def test_conflicts(run: Run, store: Path, model: Path) -> None:
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


def test_copy(run: Run, run_json: Json, store: Path) -> None:
    run("branch", "gone", "main~1")
    run("branch", "gone", "--delete")
    (summary,) = run_json("copy", str(store), BACKUP)
    assert (summary["versions"], summary["packs"]) == (2, 2)
    assert set(summary["refs"]) == {"heads/main", "tags/v1"}
    run("verify", "--store", BACKUP)
    assert run_json("copy", str(store), BACKUP)[0]["versions"] == 0
    run("copy", "nowhere", BACKUP, status=10)


def test_clone(run: Run, run_json: Json, store: Path) -> None:
    new, old = run("log", "-q").stdout.split()
    (summary,) = run_json("clone", str(store), BACKUP)
    assert (summary["id"], summary["versions"]) == (new, 1)
    assert summary["refs"] == {"heads/main": new}
    run("checkout", "main", "out", "--store", BACKUP)
    assert read_tree(Path("model")) == read_tree(Path("out"))
    assert run("clone", str(store), "second", "v1", "-q").stdout == f"{old}\n"
    assert run_json("clone", str(store), "third", "main~1")[0]["refs"] == {}
    assert run("show", old, "-q", "--store", "third").stdout == f"{old}\n"


def test_a_clone_of_nothing_makes_no_store(run: Run, store: Path) -> None:
    assert "nobody" in run("clone", str(store), BACKUP, "nobody", status=1).stderr
    assert not Path(BACKUP).exists()


def test_stores_that_do_not_fit(run: Run, store: Path) -> None:
    run("init", BACKUP, "--chunk-size", "1MiB")
    for args in (("push", BACKUP), ("copy", str(store), BACKUP), ("pull", BACKUP)):
        assert "casweights init --digest blake3" in run(*args, status=1).stderr


def test_a_target_among_other_files(run: Run, store: Path, model: Path) -> None:
    run("push", str(model), status=10)
    for args in (("push", "model", "--create"), ("copy", str(store), "model")):
        assert "has files in it" in run(*args, status=11).stderr


@pytest.mark.parametrize("verb", ["copy", "clone"])
def test_both_stores_are_arguments(run: Run, store: Path, verb: str) -> None:
    assert "--store" in run(verb, ".casweights", BACKUP, "--store", "x", status=2).stderr
    run(verb, ".casweights", status=2)


def test_unknown_refs(run: Run, store: Path) -> None:
    run("init", BACKUP, "--chunk-size", "64KiB")
    assert "nobody" in run("push", BACKUP, "nobody", status=1).stderr
    assert "nowhere" in run("push", "nowhere", status=10).stderr
