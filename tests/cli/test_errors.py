"""Exit statuses, error messages, interrupts and closed pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import casweights
from casweights.cli._app import VERBS
from casweights.cli._errors import Exit, describe, status_of, status_of_all
from casweights.cli._progress import Results
from casweights.errors import (
    CasweightsError,
    ConflictError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StoreError,
    UnsupportedError,
)
from casweights.repository import Repository

if TYPE_CHECKING:
    from tests.cli.conftest import Run, Spawn


# Python ignores Ctrl-C where its parent did, as a shell's background jobs do.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from casweights.cli import main; main()"
)

# The first run imports all modules while the process may still read them.
LOCKED_OUT = """
import os
from casweights.cli import main
try:
    main()
except SystemExit:
    os.environ["CASWEIGHTS_STORE"] = os.path.abspath(".casweights")
    os.chmod(".casweights", 0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    main()
"""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFoundError(ErrorCode.STORE_NOT_FOUND, ""), 10),
        (NotFoundError(ErrorCode.REF_NOT_FOUND, ""), 1),
        (ConflictError(ErrorCode.REF_MOVED, ""), 11),
        (ConflictError(ErrorCode.ALREADY_EXISTS, ""), 11),
        (StoreError(ErrorCode.NO_PERMISSION, ""), 12),
        (StoreError(ErrorCode.NO_SPACE, ""), 1),
        (IntegrityError(ErrorCode.CORRUPT_OBJECT, ""), 13),
        (IntegrityError(ErrorCode.MISSING_CHUNK, ""), 13),
        (InvalidInputError(ErrorCode.BAD_ARGUMENT, ""), 1),
        (UnsupportedError(ErrorCode.NEWER_FORMAT, ""), 1),
    ],
)
def test_each_error_has_its_exit_status(error: CasweightsError, status: int) -> None:
    assert status_of(error) == status


def test_damage_decides_the_exit_status_of_several_errors() -> None:
    denied = StoreError(ErrorCode.NO_PERMISSION, "")
    lost = NotFoundError(ErrorCode.OBJECT_NOT_FOUND, "")
    assert status_of_all([]) == 0
    assert status_of_all([lost]) == 1
    assert status_of_all([lost, denied]) == 12
    assert status_of_all([denied, IntegrityError(ErrorCode.CORRUPT_OBJECT, ""), lost]) == 13


def test_memory_and_system_errors_have_codes_of_their_own() -> None:
    assert describe(MemoryError()).code == "no-memory"
    missing = describe(FileNotFoundError(2, "No such file or directory", "x"))
    assert (missing.status, missing.code) == (1, "io-failed")


def test_statuses_are_never_renumbered() -> None:
    assert {status.name: status.value for status in Exit} == {
        "OK": 0,
        "ERROR": 1,
        "USAGE": 2,
        "NO_STORE": 10,
        "CONFLICT": 11,
        "PERMISSION": 12,
        "INTEGRITY": 13,
        "UNREACHABLE": 14,
        "INTERRUPTED": 130,
        "BROKEN_PIPE": 141,
    }


def test_help_ends_with_the_exit_statuses(run: Run) -> None:
    for verb in VERBS:
        text, _, statuses = run(verb, "--help").stdout.partition("\nExit status:\n")
        assert text.startswith(f"Usage: casweights {verb} ")
        assert [line.split()[0] for line in statuses.splitlines()][:3] == ["0", "1", "2"]
    assert "  11 " in run("commit", "-h").stdout


def test_the_root_help_lists_the_verbs(run: Run) -> None:
    text = run("--help").stdout
    listed = [line.split()[0] for line in text.partition("Commands:\n")[2].splitlines()]
    assert listed == list(VERBS)
    assert "..." not in text.partition("Commands:\n")[2]
    assert "Commands:" in run(status=2).output
    assert run("--version").stdout == f"casweights {casweights.__version__}\n"


@pytest.mark.parametrize(
    "args",
    [("log", "--bogus"), ("frobnicate",), ("--bogus", "log"), ("checkout", "main"), ("log", "-nx")],
)
def test_a_wrong_command_line_prints_the_usage_and_exits_with_2(
    run: Run, store: Path, args: tuple[str, ...]
) -> None:
    result = run(*args, status=2)
    assert "Usage: casweights" in result.stderr
    for json_args in ((*args, "--json"), ("--json", *args)):
        result = run(*json_args, status=2)
        error = json.loads(result.stderr)
        assert (error["code"], error["exit_code"], result.stdout) == ("usage", 2, "")


@pytest.mark.parametrize("args", [("--json", "-q", "log"), ("--json", "log", "-q")])
def test_json_and_quiet_exclude_each_other(run: Run, store: Path, args: tuple[str, ...]) -> None:
    assert "exclude each other" in run(*args, status=2).stderr
    run("--json", "log", "--json")


def test_an_error_is_one_json_object_on_standard_error(run: Run, store: Path) -> None:
    result = run("show", "nowhere", "--json", status=1)
    error = json.loads(result.stderr)
    assert result.stdout == ""
    assert error == {
        "message_type": "error",
        "code": "ref-not-found",
        "message": "the store has no branch, tag or snapshot 'nowhere'",
        "exit_code": 1,
    }


def test_quiet_commands_print_errors_without_hints(run: Run, store: Path) -> None:
    assert "Hint: " in run("show", "nowhere", status=1).stderr
    assert "Hint: " not in run("show", "nowhere", "-q", status=1).stderr
    assert "Error: " in run("show", "nowhere", "-q", status=1).stderr


def test_a_commit_that_loses_a_race_reports_the_id_of_its_version(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer moves the branch while a commit runs."""

    def commit_at_the_same_time(results: Results, stage: object, total: int) -> None:
        with casweights.open(store) as other:
            other.commit("model/config.json", message="theirs")

    with monkeypatch.context() as patch:
        patch.setattr(Results, "started", commit_at_the_same_time)
        patch.setattr(Results, "advanced", lambda *_: None)
        patch.setattr(Results, "finished", lambda *_: None)
        result = run("commit", "model", "-m", "mine", "--json", status=11)
    error = json.loads(result.stderr)
    assert error["code"] == "ref-moved"
    assert result.stdout == ""
    with casweights.open(store) as repository:
        assert repository.snapshot("main").message == "theirs"
        assert repository.snapshot(error["id"]).message == "mine"
    run("commit", "model", "-m", "mine")


def test_a_store_that_denies_access_exits_with_12(store: Path) -> None:
    """Nobody may read the store; a test run by root gives up its rights first."""
    command = [sys.executable, "-c", LOCKED_OUT, "log", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    store.chmod(0o755)
    assert result.returncode == 12
    assert json.loads(result.stderr)["code"] == "no-permission"


def test_an_internal_error_shows_its_traceback(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> None:
        raise RuntimeError("stumbled")

    monkeypatch.setattr(Repository, "history", stumble)
    result = run("log", status=1)
    assert "in stumble" in result.stderr
    assert "RuntimeError: stumbled" in result.stderr
    error = json.loads(run("log", "--json", status=1).stderr)
    assert error["code"] == "internal-error"
    assert "in stumble" in error["traceback"]


def test_an_interrupted_verb_exits_with_130(store: Path) -> None:
    """Ctrl-C comes while `cat` waits for the reader of a full pipe."""
    command = [sys.executable, "-c", INTERRUPTIBLE, "cat", "main", "model.safetensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"Error: interrupted\n"
        assert process.wait() == 130


def test_an_interrupted_commit_leaves_no_trace_and_can_be_repeated(
    run: Run, store: Path, model: Path
) -> None:
    """Ctrl-C comes while the first of several packs is written."""
    before = run("log", "-q").stdout
    noise = np.random.default_rng(0).bytes(96 << 20)
    (model / "large.bin").write_bytes(noise)
    command = [sys.executable, "-c", INTERRUPTIBLE, "commit", "model", "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list(store.glob(".casweights-tmp-*/*")):
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        message = process.stderr.read()
    if process.returncode:  # otherwise the commit ended before the signal
        assert process.returncode == 130
        assert json.loads(message)["code"] == "interrupted"
        assert run("log", "-q").stdout == before
    assert not list(store.glob(".casweights-tmp-*"))
    run("verify")
    run("commit", "model")
    run("checkout", "main", "out")
    assert Path("out", "large.bin").read_bytes() == noise


@pytest.fixture
def closed_pipe() -> Any:
    """The writing end of a pipe whose reading end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(
    "args",
    [
        ("log",),
        ("log", "--json"),
        ("ls", "-q"),
        ("cat", "main", "model.safetensors"),
        ("cat", "main", "config.json"),
        ("verify", "--json"),
        ("stats",),
    ],
)
def test_a_closed_pipe_exits_with_141_and_no_message(
    spawn: Spawn, store: Path, closed_pipe: int, args: tuple[str, ...]
) -> None:
    result = spawn(*args, capture_output=False, stdout=closed_pipe, stderr=subprocess.PIPE)
    assert result.returncode == 141
    assert result.stderr == ""


def test_a_commit_is_stored_although_its_output_pipe_is_closed(
    run: Run, spawn: Spawn, store: Path, closed_pipe: int
) -> None:
    args = ("commit", "model", "-m", "third")
    result = spawn(*args, capture_output=False, stdout=closed_pipe, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (141, "")
    assert "third" in run("log").stdout
    run("verify")


def test_head_gets_its_lines_and_no_error_appears(store: Path) -> None:
    line = f"{sys.executable} -m casweights log | head -n 1"
    result = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("args", [("log",), ("cat", "main", "model.safetensors")])
def test_a_full_output_device_is_an_error(spawn: Spawn, store: Path, args: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        result = spawn(*args, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == "Error: cannot write the output: No space left on device\n"
