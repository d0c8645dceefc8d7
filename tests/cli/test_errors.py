"""Exit statuses and error messages, and ends that come early."""

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

# The first run imports what is needed, as long as that can be read.
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
def test_statuses_of_errors(error: CasweightsError, status: int) -> None:
    assert status_of(error) == status


def test_the_gravest_of_several_errors_counts() -> None:
    denied = StoreError(ErrorCode.NO_PERMISSION, "")
    lost = NotFoundError(ErrorCode.OBJECT_NOT_FOUND, "")
    assert status_of_all([]) == 0
    assert status_of_all([lost]) == 1
    assert status_of_all([lost, denied]) == 12
    assert status_of_all([denied, IntegrityError(ErrorCode.CORRUPT_OBJECT, ""), lost]) == 13


def test_errors_that_are_not_ours() -> None:
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
def test_usage_errors(run: Run, store: Path, args: tuple[str, ...]) -> None:
    result = run(*args, status=2)
    assert "Usage: casweights" in result.stderr
    for json_args in ((*args, "--json"), ("--json", *args)):
        result = run(*json_args, status=2)
        error = json.loads(result.stderr)
        assert (error["code"], error["exit_code"], result.stdout) == ("usage", 2, "")


@pytest.mark.parametrize("args", [("--json", "-q", "log"), ("--json", "log", "-q")])
def test_one_kind_of_output_at_a_time(run: Run, store: Path, args: tuple[str, ...]) -> None:
    assert "exclude each other" in run(*args, status=2).stderr
    run("--json", "log", "--json")


def test_errors_as_json(run: Run, store: Path) -> None:
    result = run("show", "nowhere", "--json", status=1)
    error = json.loads(result.stderr)
    assert result.stdout == ""
    assert error == {
        "message_type": "error",
        "code": "ref-not-found",
        "message": "the store has no branch, tag or snapshot 'nowhere'",
        "exit_code": 1,
    }


def test_hints_are_for_people(run: Run, store: Path) -> None:
    assert "Hint: " in run("show", "nowhere", status=1).stderr
    assert "Hint: " not in run("show", "nowhere", "-q", status=1).stderr
    assert "Error: " in run("show", "nowhere", "-q", status=1).stderr


def test_two_writers(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer moves the branch while a commit is at work."""

    def commit_meanwhile(results: Results, stage: object, total: int) -> None:
        with casweights.open(store) as other:
            other.commit("model/config.json", message="theirs")

    with monkeypatch.context() as patch:
        patch.setattr(Results, "started", commit_meanwhile)
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


def test_no_permission(store: Path) -> None:
    """The store is closed to us; root gives up its rights for it."""
    command = [sys.executable, "-c", LOCKED_OUT, "log", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    store.chmod(0o755)
    assert result.returncode == 12
    assert json.loads(result.stderr)["code"] == "no-permission"


def test_a_bug_shows_where_it_is(run: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise RuntimeError("stumbled")

    monkeypatch.setattr(Repository, "log", stumble)
    result = run("log", status=1)
    assert "in stumble" in result.stderr
    assert "RuntimeError: stumbled" in result.stderr
    error = json.loads(run("log", "--json", status=1).stderr)
    assert error["code"] == "internal-error"
    assert "in stumble" in error["traceback"]


def test_interrupting_a_verb(store: Path) -> None:
    """`cat` is stuck, as nobody reads on, when Ctrl-C comes."""
    command = [sys.executable, "-c", INTERRUPTIBLE, "cat", "main", "model.safetensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"Error: interrupted\n"
        assert process.wait() == 130


def test_interrupting_a_commit(run: Run, store: Path, model: Path) -> None:
    """Ctrl-C while the first of several packs is written."""
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
    if process.returncode:  # else it was faster
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
    """A pipe whose reader has left."""
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
def test_a_reader_that_left(
    spawn: Spawn, store: Path, closed_pipe: int, args: tuple[str, ...]
) -> None:
    result = spawn(*args, capture_output=False, stdout=closed_pipe, stderr=subprocess.PIPE)
    assert result.returncode == 141
    assert result.stderr == ""


def test_a_reader_that_left_does_not_undo_the_work(
    run: Run, spawn: Spawn, store: Path, closed_pipe: int
) -> None:
    args = ("commit", "model", "-m", "third")
    result = spawn(*args, capture_output=False, stdout=closed_pipe, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (141, "")
    assert "third" in run("log").stdout
    run("verify")


def test_in_a_pipeline(store: Path) -> None:
    line = f"{sys.executable} -m casweights log | head -n 1"
    result = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("args", [("log",), ("cat", "main", "model.safetensors")])
def test_a_full_disk(spawn: Spawn, store: Path, args: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        result = spawn(*args, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == "Error: cannot write the output: No space left on device\n"
