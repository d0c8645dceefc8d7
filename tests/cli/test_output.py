"""The form of the output: in a terminal, in a pipe, and for shell scripts."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

import casweights
from casweights.cli import _text

if TYPE_CHECKING:
    from tests.cli.conftest import Run, Spawn


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (90_868_376, "90.9 MB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (16_060_522_496, "16.1 GB"),
        (10**15, "1.0 PB"),
        (10**19, "10000.0 PB"),
    ],
)
def test_sizes_are_decimal_with_one_digit(nbytes: int, text: str) -> None:
    assert _text.size(nbytes) == text


@pytest.mark.parametrize(
    ("nbytes", "text"), [(4 << 20, "4 MiB"), (64 << 10, "64 KiB"), (64 << 20, "64 MiB"), (1, "1 B")]
)
def test_binary_sizes_have_no_remainder(nbytes: int, text: str) -> None:
    assert _text.binary_size(nbytes) == text


@pytest.mark.parametrize(
    ("text", "room", "shown"),
    [
        ("weights", 7, "weights"),
        ("weights", 6, "weigh…"),
        ("weights", 1, "…"),
        ("weights", 0, ""),
        ("重みの差", 8, "重みの差"),
        ("重みの差", 7, "重みの…"),
        ("重みの差", 6, "重み…"),
        ("e\u0301te\u0301", 3, "e\u0301te\u0301"),
    ],
)
def test_lines_are_cut_to_columns(text: str, room: int, shown: str) -> None:
    assert _text.cut(text, room) == shown
    assert _text.width(shown) <= room


def test_times_near_the_first_and_last_year_are_shown() -> None:
    for time in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
        assert _text.moment(time).endswith(time.strftime("-%m-%d %H:%M"))
    time = datetime(2026, 11, 22, 10, 8, tzinfo=UTC)
    assert _text.moment(time) == (time + timedelta()).astimezone().strftime("%Y-%m-%d %H:%M")


def test_times_are_shown_in_the_local_time_zone(spawn: Spawn, model: Path) -> None:
    time = datetime(2026, 11, 22, 23, 8, 1, tzinfo=UTC)
    with casweights.open(".casweights", create=True) as store:
        store.commit(model, time=time)
    assert "2026-11-23 08:08 " in spawn("log", env={**os.environ, "TZ": "JST-9"}).stdout
    assert '"2026-11-22T23:08:01.000000Z"' in spawn("log", "--json").stdout


HOSTILE = "\x1b[31mred\x07\r\n\u202eevil\x9b2J"
ESCAPED = r"\x1b[31mred\x07\r\n\u202eevil\x9b2J"


@pytest.fixture
def hostile(work: Path) -> None:
    """A store whose names and messages contain control characters for terminals."""
    Path("model").mkdir()
    save_file({HOSTILE: np.zeros(1, np.int8)}, "model/m.safetensors")
    with casweights.open(".casweights", create=True) as store:
        store.commit("model", author=HOSTILE, message=HOSTILE, metadata={HOSTILE: HOSTILE})


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    "args",
    [
        ("log",),
        ("show",),
        ("ls", "--tensors"),
        ("ls", "--tensors", "-q"),
        ("ls", "--tensors", "--json"),
        ("show", "--json"),
        ("branch",),
        ("branch", "--json"),
        ("cat", "main", HOSTILE),
        ("show", HOSTILE),
    ],
)
def test_text_from_a_store_cannot_control_the_terminal(spawn: Spawn, args: tuple[str, ...]) -> None:
    result = spawn(*args)
    text = result.stdout + result.stderr
    assert "x1b[31m" in text or "u001b[31m" in text
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.usefixtures("hostile")
def test_control_characters_are_escaped(run: Run) -> None:
    assert run("ls", "--tensors", "-q").stdout == f"{ESCAPED}\n"


def in_terminal(*args: str, **env: str) -> tuple[int, str]:
    """Run the command line in a terminal; return its exit status and output."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "casweights", *args]
    settings = {**os.environ, "TERM": "xterm", "COLUMNS": "60", **env}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=settings) as process:
        os.close(theirs)
        output = b""
        while data := read_terminal(ours):
            output += data
    os.close(ours)
    return process.returncode, output.decode().replace("\r\n", "\n")


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux: the other end of the terminal is closed
        return b""


def plain(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


def test_a_terminal_gets_colours_and_cut_lines(run: Run, model: Path) -> None:
    run("init")
    run("commit", "model", "-m", "a long message " * 20)
    status, text = in_terminal("log")
    assert status == 0
    assert "\x1b[33m" in text
    line = plain(text).rstrip("\n")
    assert len(line) == 60
    assert line.endswith("…")
    assert len(plain(in_terminal("log", COLUMNS="100")[1]).rstrip("\n")) == 100


def test_a_pipe_gets_whole_lines_without_colours(spawn: Spawn, run: Run, model: Path) -> None:
    run("init")
    run("commit", "model", "-m", "a long message " * 20)
    text = spawn("log", env={**os.environ, "COLUMNS": "60"}).stdout
    assert "\x1b" not in text
    assert text.count("a long message") == 20


@pytest.mark.usefixtures("store")
def test_variables_turn_colours_off() -> None:
    assert "\x1b" in in_terminal("log")[1]
    assert "\x1b" in in_terminal("log", NO_COLOR="")[1]
    assert "\x1b" not in in_terminal("log", NO_COLOR="1")[1]
    assert "\x1b" not in in_terminal("log", TERM="dumb")[1]


@pytest.mark.usefixtures("store")
def test_json_and_quiet_are_the_same_in_a_terminal(run: Run) -> None:
    for args in (("log", "--json"), ("log", "-q")):
        assert in_terminal(*args, COLUMNS="20")[1] == run(*args).stdout


@pytest.mark.usefixtures("store")
def test_cat_refuses_to_write_a_binary_file_to_a_terminal() -> None:
    status, text = in_terminal("cat", "main", "model.safetensors")
    assert status == 2
    assert "casweights cat main model.safetensors > file" in plain(text)
    assert in_terminal("cat", "main", "config.json") == (0, '{"hidden_size": 4}\n')


def test_characters_missing_in_the_encoding_are_escaped(run: Run, spawn: Spawn, work: Path) -> None:
    save_file({"重み": np.zeros(1, np.int8)}, "m.safetensors")
    run("init")
    run("commit", "m.safetensors", "-m", "größer")
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = spawn("ls", "--tensors", "-q", env=latin, encoding="latin-1")
    assert result.stdout == "\\u91cd\\u307f\n"
    assert "größer" in spawn("log", env=latin, encoding="latin-1").stdout
