"""Help, suggestions and hints: they fit the mistake and say what to do."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights.cli._app import VERBS
from casweights.errors import ErrorCode, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run

KINDS = "a directory, or hf://buckets/NAMESPACE/NAME[/FOLDER] for a bucket of the Hugging Face Hub."


def help_of(run: Run, verb: str) -> str:
    """Return the help of a verb as one line, without line breaks in its sentences."""
    return " ".join(run(verb, "--help").stdout.split())


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_the_kinds_of_stores_and_the_variable(run: Run, verb: str) -> None:
    assert KINDS in help_of(run, verb)
    assert "[default: $CASWEIGHTS_STORE, or " in help_of(run, verb)


@pytest.mark.parametrize(
    ("verb", "role"),
    [
        ("log", "--store STORE The store: "),
        ("init", "The store to make, if not given as PATH: "),
        ("push", "The store to send from: "),
        ("pull", "The store to fetch to: "),
    ],
)
def test_help_names_the_role_of_the_store(run: Run, verb: str, role: str) -> None:
    assert role in help_of(run, verb)


def test_help_of_init_names_its_own_default(run: Run) -> None:
    assert "[default: $CASWEIGHTS_STORE, or .casweights]" in help_of(run, "init")


@pytest.mark.parametrize(
    ("name", "verb"),
    [("lgo", "log"), ("comit", "commit"), ("check-out", "checkout"), ("clone", "pull")],
)
def test_a_wrong_verb_suggests_the_nearest(run: Run, name: str, verb: str) -> None:
    message = f"There is no command '{name}'. Did you mean '{verb}'?"
    assert message in run(name, "x", status=2).stderr
    assert json.loads(run(name, "--json", status=2).stderr)["message"] == message


def test_a_verb_that_resembles_none_suggests_none(run: Run) -> None:
    assert "There is no command 'xyzzy'.\n" in run("xyzzy", status=2).stderr


@pytest.mark.parametrize("ref", ["main~2", "main~5", "heads/main~2"])
def test_a_step_beyond_the_history_names_the_oldest_version(
    run: Run, store: Path, ref: str
) -> None:
    name = ref.partition("~")[0]
    lines = run("show", ref, status=1).stderr.splitlines()
    assert lines == [
        f"Error: '{ref}' does not exist: '{name}' has 2 versions, and the oldest is '{name}~1'",
        f"Hint: `casweights log {name}` lists the versions that exist",
    ]
    run("show", f"{name}~1")


def test_a_step_before_the_first_version_says_so(run: Run, store: Path) -> None:
    text = run("show", "v1~1", status=1).stderr
    assert "'v1~1' does not exist: no version comes before 'v1'\n" in text


def test_a_step_that_is_no_number_shows_how_to_write_one(run: Run, store: Path) -> None:
    assert "write a number after ~, as in main~1" in run("show", "main~x", status=1).stderr


@pytest.mark.parametrize(
    ("ref", "suggestion"),
    [
        ("mian", "main"),
        ("Main", "main"),
        ("v1.0", "v1"),
        ("mian~1", "main"),
        ("heads/mian", "heads/main"),
        ("rleease", "release or rc-release"),
    ],
)
def test_a_name_close_to_a_ref_suggests_it(
    run: Run, store: Path, ref: str, suggestion: str
) -> None:
    run("tag", "release")
    run("branch", "rc-release", "main")
    assert f"Hint: did you mean {suggestion}?\n" in run("show", ref, status=1).stderr


def test_a_name_like_no_ref_says_how_to_list_them(run: Run, store: Path) -> None:
    assert run("show", "nowhere", status=1).stderr.splitlines() == [
        "Error: the store has no branch, tag or snapshot 'nowhere'",
        "Hint: `casweights branch` and `casweights tag` list the existing names",
    ]


def test_a_ref_of_an_empty_store_says_that_it_is_empty(run: Run) -> None:
    run("init")
    assert "no branches or tags yet: commit a first version" in run("log", status=1).stderr


def test_a_short_prefix_of_an_id_says_how_long_it_must_be(run: Run, store: Path) -> None:
    assert "a prefix of an ID has at least 4 digits" in run("show", "ab", status=1).stderr


def test_an_ambiguous_prefix_lists_candidates(run: Run, store: Path) -> None:
    """Names of snapshot objects suffice, since the prefix is compared with names only."""
    ids = [f"abcd{n}{'0' * 59}" for n in range(7)]
    for name in ids[:2]:
        (store / "snapshots" / name).touch()
    lines = run("show", "abcd", status=1).stderr.splitlines()
    assert lines[0] == "Error: 2 snapshots begin with abcd: give more digits"
    assert lines[1] == f"Hint: they are {ids[0][:12]}, {ids[1][:12]}"
    for name in ids:
        (store / "snapshots" / name).touch()
    assert run("show", "abcd", status=1).stderr.endswith(f"{ids[4][:12]} and 2 more\n")


def test_an_unknown_id_says_how_to_list_ids(run: Run, store: Path) -> None:
    assert "Hint: `casweights log REF` lists" in run("show", "0" * 64, status=1).stderr


def test_a_path_close_to_a_file_suggests_it(run: Run, store: Path) -> None:
    assert "did you mean config.json?" in run("cat", "main", "confg.json", status=1).stderr


def test_a_folder_without_a_store_says_how_to_make_one(run: Run, model: Path) -> None:
    text = run("log", "--store", "model", status=10).stderr
    assert f"there is no casweights store at {model}: make one with `casweights init`" in text


def test_a_folder_with_a_store_in_it_names_that_store(run: Run, store: Path) -> None:
    text = run("log", "--store", ".", status=10).stderr
    assert "Hint: there is a store in it: .casweights\n" in text


def test_a_folder_of_a_store_names_that_store(run: Run, store: Path) -> None:
    text = run("log", "--store", ".casweights/packs", status=10).stderr
    assert f"Hint: it is inside the store {store}\n" in text


@pytest.mark.parametrize("args", [("push", "nowhere"), ("pull", ".casweights", "--store", "new")])
def test_a_missing_target_suggests_to_create_it(
    run: Run, store: Path, args: tuple[str, ...]
) -> None:
    assert "Hint: --create makes it\n" in run(*args, status=10).stderr
    run(*args, "--create")


def test_a_missing_source_suggests_no_creation(run: Run, store: Path) -> None:
    assert "--create" not in run("pull", "nowhere", status=10).stderr


def test_a_cache_size_that_is_no_number_is_an_error(run: Run, store: Path) -> None:
    text = run("log", status=1, CASWEIGHTS_CACHE="1GB").stderr
    assert "must be a number of bytes, or 0 for no cache, got '1GB'" in text


def test_json_errors_have_no_hints(run: Run, store: Path) -> None:
    error = json.loads(run("show", "mian", "--json", status=1).stderr)
    assert error.keys() == {"message_type", "code", "message", "exit_code"}


def test_suggestions_are_notes_on_errors_of_the_library(store: Path) -> None:
    with casweights.open(store) as repository:
        with pytest.raises(NotFoundError) as caught:
            repository.snapshot("mian")
        assert caught.value.code is ErrorCode.REF_NOT_FOUND
        assert caught.value.__notes__ == ["did you mean main?"]


def test_no_help_line_is_wider_than_a_terminal(run: Run) -> None:
    for verb in VERBS:
        lines = run(verb, "--help").stdout.splitlines()
        wide = [line for line in lines if len(line) > 80 and not re.match(" +casweights ", line)]
        assert wide == [], verb
