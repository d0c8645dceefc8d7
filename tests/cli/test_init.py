"""The verb ``init``, and how the other verbs find a store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import casweights

if TYPE_CHECKING:
    from tests.cli.conftest import Json, Run, Spawn


def test_init_makes_a_store_in_the_default_folder(run: Run, work: Path) -> None:
    result = run("init")
    assert str(work / ".casweights") in result.stdout
    with casweights.open(work / ".casweights") as store:
        assert store.config == casweights.StoreConfig()


def test_init_makes_a_store_at_the_path_with_the_options(run: Run, work: Path) -> None:
    run("init", "a/b", "--digest", "xxh3-128", "--chunk-size", "256KiB")
    with casweights.open(work / "a" / "b") as store:
        assert store.config == casweights.StoreConfig(digest="xxh3-128", chunk_size=256 << 10)


@pytest.mark.parametrize("args", [("--store", "s", "init"), ("init", "--store", "s")])
def test_init_makes_a_store_at_the_store_option(
    run: Run, work: Path, args: tuple[str, ...]
) -> None:
    run(*args)
    assert (work / "s" / "casweights.json").is_file()


def test_init_uses_the_variable_unless_a_path_is_given(run: Run, work: Path) -> None:
    run("init", CASWEIGHTS_STORE="one")
    run("init", "two", CASWEIGHTS_STORE="one")
    assert (work / "one" / "casweights.json").is_file()
    assert (work / "two" / "casweights.json").is_file()


def test_init_refuses_a_path_and_a_store_option_together(run: Run) -> None:
    assert "give one of them" in run("--store", "a", "init", "b", status=2).stderr


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4MiB", 4 << 20), ("4mib", 4 << 20), ("64K", 64 << 10), ("1 MiB", 1 << 20), ("65536", 65536)],
)
def test_chunk_sizes_are_parsed(run_json: Json, text: str, nbytes: int) -> None:
    assert run_json("init", "--chunk-size", text)["chunk_size"] == nbytes


@pytest.mark.parametrize("text", ["", "4MB", "many", "3MiB", "1KiB", "128MiB", "-4MiB", "4.5MiB"])
def test_a_wrong_chunk_size_makes_no_store(run: Run, work: Path, text: str) -> None:
    assert "--chunk-size" in run("init", "--chunk-size", text, status=2).stderr
    assert not list(work.iterdir())


def test_repeating_init_changes_nothing(run: Run, run_json: Json, store: Path) -> None:
    before = run("log", "--json").stdout
    assert run_json("init")["created"] is False
    assert "already" in run("init", "--chunk-size", "64KiB", "--digest", "blake3").stdout
    assert run("log", "--json").stdout == before


@pytest.mark.parametrize("option", [("--digest", "xxh3-128"), ("--chunk-size", "4MiB")])
def test_init_refuses_other_settings_for_an_existing_store(
    run: Run, store: Path, option: tuple[str, str]
) -> None:
    assert "cannot be changed" in run("init", *option, status=11).stderr


def test_init_refuses_a_folder_with_files(run: Run, model: Path) -> None:
    before = sorted(model.rglob("*"))
    assert "model/.casweights" in run("init", "model", status=11).stderr
    assert sorted(model.rglob("*")) == before


def test_init_accepts_a_folder_with_hidden_entries_only(run: Run, work: Path) -> None:
    (work / "mounted" / ".Trash").mkdir(parents=True)
    run("init", "mounted")
    assert (work / "mounted" / "casweights.json").is_file()


def test_init_refuses_an_unknown_url_scheme(run: Run, work: Path) -> None:
    assert "s3://" in run("init", "s3://bucket", status=1).stderr
    assert not list(work.iterdir())


@pytest.mark.parametrize("where", [".", "model", "model/notes/deep", ".casweights/refs"])
def test_the_nearest_store_above_the_folder_is_found(
    spawn: Spawn, store: Path, work: Path, where: str
) -> None:
    folder = work / where
    folder.mkdir(parents=True, exist_ok=True)
    result = spawn("log", "-q", cwd=folder)
    assert len(result.stdout.splitlines()) == 2, result.stderr


def test_a_store_is_found_from_its_own_folders(spawn: Spawn, store: Path, work: Path) -> None:
    store.rename(work / "weights")
    assert spawn("log", cwd=work).returncode == 10
    assert spawn("log", cwd=work / "weights").returncode == 0
    assert spawn("log", cwd=work / "weights" / "refs").returncode == 0


def test_a_nearer_store_hides_a_farther_one(run: Run, spawn: Spawn, store: Path) -> None:
    inner = Path("model", "inner")
    run("init", str(inner / ".casweights"))
    assert spawn("log", cwd=inner).returncode == 1  # it has no branch main yet


def test_a_missing_store_exits_with_10_and_says_how_to_make_one(spawn: Spawn, work: Path) -> None:
    result = spawn("log")
    assert result.returncode == 10
    assert result.stdout == ""
    assert "casweights init" in result.stderr
    assert "CASWEIGHTS_STORE" in result.stderr


@pytest.mark.parametrize("args", [("--store", "gone", "log"), ("log", "--store", "gone")])
def test_a_store_option_without_a_store_exits_with_10(
    run: Run, store: Path, args: tuple[str, ...]
) -> None:
    assert "gone" in run(*args, status=10).stderr


def test_the_option_after_the_verb_goes_before_the_others(run: Run, store: Path) -> None:
    run("init", "other")
    shutil.move(store, "real")
    run("--store", "real", "log")
    run("log", "--store", "real")
    run("log", CASWEIGHTS_STORE="real")
    run("log", "--store", "real", CASWEIGHTS_STORE="other")
    run("--store", "other", "log", "--store", "real")
    run("--store", "real", "log", "--store", "other", status=1)
    run("log", CASWEIGHTS_STORE="", status=10)


def test_an_empty_store_option_is_refused(run: Run, store: Path) -> None:
    assert "--store" in run("--store", "", "log", status=2).stderr


def test_a_standalone_store_stays_one_and_says_so(run: Run, run_json: Json, work: Path) -> None:
    run("init", "a", "--standalone")
    run("init", "a")
    assert run_json("--store", "a", "info")["standalone"] is True
    run("init", "b")
    assert "commit --standalone" in run("init", "b", "--standalone", status=11).stderr


def test_init_shared_can_be_repeated(run: Run, work: Path) -> None:
    run("init", "a", "--shared")
    assert (work / "a").stat().st_mode & 0o2070 == 0o2070
    run("init", "a", "--shared")


def test_init_does_not_share_an_existing_store(run: Run, work: Path) -> None:
    run("init", "a")
    result = run("init", "a", "--shared", status=11)
    assert "chmod -R g+rwX" in result.stderr
