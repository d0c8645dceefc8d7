"""Closed standard streams, and interrupts before a verb has begun."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import casweights

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run, Spawn

# A program that interrupts itself when the command line begins to import a certain module.
INTERRUPTED = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupter())
signal.signal(signal.SIGINT, signal.default_int_handler)
from casweights.cli import main
main()
"""
COMMANDS = [
    ("log",),
    ("log", "--json"),
    ("ls", "-q"),
    ("cat", "main", "model.safetensors"),
    ("verify", "--json"),
    ("stats",),
    ("commit", "model", "-m", "third"),
    ("checkout", "main", "out"),
    ("--help",),
    ("--version",),
    ("log", "--help"),
]


def shell(command: str, args: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run the command line from a shell command, which can close its streams."""
    line = ["sh", "-c", command, "sh", sys.executable, "-m", "casweights", *args]
    return subprocess.run(line, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_closed_standard_output_is_an_error(store: Path, args: tuple[str, ...]) -> None:
    result = shell('"$@" >&-', args)
    assert result.returncode == 1
    assert "Bad file descriptor" in result.stderr
    assert "Traceback" not in result.stderr
    assert "bug" not in result.stderr


def test_closed_standard_output_is_no_error_for_a_command_without_output(store: Path) -> None:
    result = shell('"$@" >&-', ("verify", "-q"))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("streams", ["<&-", "2>&-", "<&- 2>&-"])
@pytest.mark.parametrize("args", [("log",), ("verify",), ("commit", "model")], ids=" ".join)
def test_closed_standard_input_and_error_are_no_error(
    run: Run, store: Path, streams: str, args: tuple[str, ...]
) -> None:
    result = shell(f'"$@" {streams}', args)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout
    run("verify")


def test_closed_streams_print_nothing_into_files_of_the_store(store: Path) -> None:
    """With all streams closed, the first files that are opened get their descriptors."""
    result = shell('"$@" <&- >&- 2>&-', ("commit", "model", "--branch", "other"))
    assert result.returncode == 1
    with casweights.open(store) as repository:
        assert repository.verify().problems == ()
        assert "other" in repository.branches()


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("log", "--help")], ids=" ".join)
def test_help_into_a_closed_pipe_exits_with_141(spawn: Spawn, args: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = spawn(*args, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize(
    "module",
    [
        *("click", "casweights.cli._app", "casweights.cli._output", "casweights.cli._session"),
        *("casweights.cli.commit", "casweights.repository", "casweights.database", "msgpack"),
        *("casweights.operations.commit", "casweights.database.writer", "zstandard", "numpy"),
    ],
)
def test_an_interrupt_during_imports_leaves_no_traceback(store: Path, module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, module, "commit", "model"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert result.stderr in ("", "Error: interrupted\n")
    assert not list(store.glob(".casweights-tmp-*"))
