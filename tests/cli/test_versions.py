"""The verbs ``commit``, ``checkout`` and ``cat``."""

from __future__ import annotations

import getpass
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.testing.trees import read_tree

if TYPE_CHECKING:
    from tests.cli.conftest import Json, Run, Spawn


def test_checkout_restores_the_committed_files(run: Run, model: Path) -> None:
    run("init")
    run("commit", "model", "-m", "first")
    run("checkout", "main", "copy")
    assert read_tree(Path("copy")) == read_tree(model)


def test_commit_prints_the_id_and_the_sizes(run: Run, model: Path) -> None:
    run("init")
    lines = run("commit", "model", "-m", "first\n\nbody").stdout.splitlines()
    assert re.fullmatch(r"[0-9a-f]{12}  main  first", lines[0])
    assert re.fullmatch(r"3 files, 242\.3 kB: 242\.0 kB new, stored in \d+\.\d kB", lines[1])
    lines = run("commit", "model", "--branch", "other").stdout.splitlines()
    assert lines[1] == "3 files, 242.3 kB: 0 B new, stored in 0 B"


def test_commit_json_has_sizes_and_parents(run_json: Json, model: Path) -> None:
    run_json("init")
    first = run_json("commit", "model")[-1]
    second = run_json("commit", "model", "--branch", "dev", "--parent", "main")[-1]
    assert first["total_bytes"] == sum(map(len, read_tree(model).values()))
    assert 0 < first["stored_bytes"] <= first["new_bytes"] <= first["total_bytes"]
    assert second["parents"] == [first["id"]]
    assert second["branch"] == "dev"
    assert second["new_bytes"] == second["stored_bytes"] == second["packs"] == 0


def test_commit_stores_message_author_and_metadata(run: Run, model: Path) -> None:
    run("init")
    meta = ["step=10", "loss=0.5", "note=as is", "eq=a=b", "nan=NaN", 'tags=["x", null]', "empty="]
    options = [f"--meta={pair}" for pair in meta]
    commit_id = run("commit", "model", "-m", "why", "--author", "Ada", *options, "-q").stdout
    with casweights.open(".casweights") as store:
        snapshot = store.snapshot("main")
    assert commit_id == f"{snapshot.id}\n"
    assert (snapshot.message, snapshot.author) == ("why", "Ada")
    assert snapshot.metadata == {
        "step": 10,
        "loss": 0.5,
        "note": "as is",
        "eq": "a=b",
        "nan": "NaN",
        "tags": ["x", None],
        "empty": "",
    }


@pytest.mark.parametrize("pair", ["step", "=10", ""])
def test_metadata_without_a_key_or_value_is_refused(run: Run, store: Path, pair: str) -> None:
    assert "KEY=VALUE" in run("commit", "model", "--meta", pair, status=2).stderr


def test_the_author_comes_from_the_option_variable_or_login(
    run: Run, run_json: Json, model: Path
) -> None:
    run("init")
    run("commit", "model", CASWEIGHTS_AUTHOR="From the Environment")
    assert run_json("show")["author"] == "From the Environment"
    run("commit", "model", "--author", "", CASWEIGHTS_AUTHOR="From the Environment")
    assert run_json("show")["author"] == ""
    run("commit", "model")
    assert run_json("show")["author"] == getpass.getuser()


def test_commit_leaves_out_excluded_files(run: Run, model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git" / "config").touch()
    run("init")
    run("commit", "model", "--exclude", "notes", "--exclude", "*.json")
    assert run("ls", "-q").stdout == "model.safetensors\n"


def test_commit_stores_opaque_files_unparsed(run: Run, run_json: Json, model: Path) -> None:
    (model / "broken.safetensors").write_bytes(b"no header")
    run("init")
    assert "broken.safetensors" in run("commit", "model", status=1).stderr
    run("commit", "model", "--opaque", "broken*")
    assert {row["path"]: row["tensors"] for row in run_json("ls")} == {
        "broken.safetensors": None,
        "config.json": None,
        "model.safetensors": 3,
        "notes/readme.md": None,
    }


def test_compression_changes_the_stored_size(run_json: Json, model: Path) -> None:
    (model / "zeros").write_bytes(bytes(10_000) + bytes(range(250)) * 40)
    stored = []
    for choice in ("fast", "small"):
        run_json("init", choice)
        summary = run_json("--store", choice, "commit", "model", "--compression", choice)[-1]
        stored.append(summary["stored_bytes"])
    assert stored[0] > stored[1]
    run_json_usage = ("commit", "model", "--store", "fast", "--compression", "best")
    with pytest.raises(AssertionError, match="best"):
        run_json(*run_json_usage)


def test_a_single_file_can_be_committed(run: Run, model: Path) -> None:
    run("init")
    run("commit", "model/config.json")
    assert run("ls", "-q").stdout == "config.json\n"


def test_the_current_directory_can_be_committed_into_a_store_inside(
    run: Run, spawn: Spawn, model: Path
) -> None:
    assert spawn("init", cwd=model).returncode == 0
    assert spawn("commit", ".", cwd=model).returncode == 0
    result = spawn("ls", "-q", cwd=model)
    assert result.stdout.splitlines() == ["config.json", "model.safetensors", "notes/readme.md"]


def test_commit_of_nothing_is_an_error(run: Run, store: Path) -> None:
    assert "nowhere" in run("commit", "nowhere", status=1).stderr
    Path("empty").mkdir()
    assert "empty" in run("commit", "empty", status=1).stderr
    assert len(run("log", "-q").stdout.splitlines()) == 2


def test_a_parent_for_an_existing_branch_is_refused(run: Run, store: Path) -> None:
    assert "main" in run("commit", "model", "--parent", "v1", status=1).stderr


def test_checkout_writes_only_files_that_differ(run_json: Json, run: Run, store: Path) -> None:
    run("checkout", "v1", "out")
    Path("out", "mine.txt").touch()
    summary = run_json("checkout", "main", "out")[-1]
    assert (summary["files"], summary["written_files"], summary["deleted_files"]) == (3, 2, 0)
    assert summary["directory"] == "out"
    assert sorted(read_tree(Path("out"))) == [
        "config.json",
        "mine.txt",
        "model.safetensors",
        "notes/readme.md",
        "vocab.txt",
    ]


def test_checkout_with_delete_removes_other_files(run: Run, store: Path, model: Path) -> None:
    run("checkout", "v1", "out")
    text = run("checkout", "main", "out", "--delete").stdout
    assert "2 written, 1 deleted" in text
    assert read_tree(Path("out")) == read_tree(model)


def test_checkout_overwrites_unsaved_files_only_with_force(
    run: Run, store: Path, model: Path
) -> None:
    run("checkout", "v1", "out")
    Path("out", "mine.txt").write_text("mine")
    Path("out", "config.json").write_text("edited")
    before = read_tree(Path("out"))
    for options, lost in ([], ["config.json"]), (["--delete"], ["config.json", "mine.txt"]):
        result = run("checkout", "main", "out", *options, status=11)
        assert all(name in result.stderr for name in lost)
        assert "--force" in result.stderr
        error = json.loads(run("checkout", "main", "out", *options, "--json", status=11).stderr)
        assert (error["code"], error["files"]) == ("unsaved-files", lost)
        assert read_tree(Path("out")) == before
    assert "2 deleted" in run("checkout", "main", "out", "--delete", "--force").stdout
    assert read_tree(Path("out")) == read_tree(model)


def test_checkout_with_include_writes_a_part(run: Run, store: Path) -> None:
    run("checkout", "main", "part", "--include", "config.json", "--include", "head.*")
    assert sorted(read_tree(Path("part"))) == ["config.json", "model.safetensors"]
    run("init", "parts")
    run("commit", "part", "--store", "parts")
    tensors = run("ls", "--tensors", "-q", "--store", "parts").stdout.split()
    assert sorted(tensors) == ["head.bias", "head.weight"]


def test_checkout_of_a_missing_part_is_an_error(run: Run, store: Path) -> None:
    result = run("checkout", "main", "part", "--include", "nothing*", status=1)
    assert "nothing*" in result.stderr
    assert "Hint: " in result.stderr
    assert not Path("part").exists()


def test_checkout_quiet_prints_the_id(run: Run, store: Path) -> None:
    assert run("checkout", "v1", "out", "-q").stdout == run("show", "v1", "-q").stdout


def test_checkout_refuses_a_directory_in_place_of_a_file(run: Run, store: Path) -> None:
    Path("out", "config.json").mkdir(parents=True)
    assert "in the way" in run("checkout", "main", "out", status=1).stderr


@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "vocab.txt"])
@pytest.mark.parametrize("options", [(), ("-q",), ("--json",)])
def test_cat_writes_the_bytes(
    run: Run, store: Path, model: Path, path: str, options: tuple[str, ...]
) -> None:
    result = run("cat", "main", path, *options)
    assert result.stdout_bytes == (model / path).read_bytes()
    assert result.stderr == ""


def test_cat_of_an_empty_file_writes_nothing(run: Run, model: Path) -> None:
    (model / "empty").touch()
    run("init")
    run("commit", "model")
    assert run("cat", "main", "empty").stdout_bytes == b""


def test_cat_of_a_missing_file_is_an_error(run: Run, store: Path) -> None:
    result = run("cat", "v1", "vocab.txt", status=1)
    assert result.stdout == ""
    assert "casweights ls" in result.stderr


@pytest.mark.parametrize("mode", ["people", "scripts", "JSON"])
def test_an_index_of_shards_that_are_missing_is_a_warning(
    run: Run, run_json: Json, work: Path, mode: str
) -> None:
    run("init")
    (work / "model").mkdir()
    index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
    (work / "model/model.safetensors.index.json").write_text(json.dumps(index))
    said = "model.safetensors.index.json names 'model-00002-of-00002.safetensors'"
    if mode == "JSON":
        warning, summary = run_json("commit", "model")
        assert warning["message_type"] == "warning"
        assert warning["code"] == "bad-index"
        assert said in warning["message"]
        assert summary["message_type"] == "summary"
        return
    result = run("commit", "model", *(["-q"] if mode == "scripts" else []))
    assert result.stderr.startswith(f"Warning: {said}")
    assert "Warning" not in result.stdout
