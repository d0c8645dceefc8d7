"""Messages and exit statuses of the command line if the Hub is unreachable or refuses access."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casweights.cli._errors import Exit
from casweights.testing.hub import LocalHub
from tests.faults.hub_driver import BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STORE = f"hf://buckets/{BUCKET}/store"
UNREACHABLE = 14

IMPATIENT = """
import runpy
from casweights.config import RemoteOptions
RemoteOptions.__init__.__kwdefaults__.update(patience=2.0, stall=1.0)
runpy.run_module("casweights", run_name="__main__", alter_sys=True)
"""


class CommandLine:
    """Runs commands as processes that soon give up, against the Hub at a URL."""

    def __init__(self, url: str, folder: Path, token: str = "any") -> None:
        self.model = folder / "model"
        self.out = folder / "out"
        self._folder = folder
        self._hub = {"HF_ENDPOINT": url, "HF_HOME": str(folder / "home"), "HF_TOKEN": token}

    def __call__(self, *arguments: object, store: str = STORE, **hub: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", IMPATIENT, *map(str, arguments), "--store", store],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env={**os.environ, **self._hub, **hub},
        )
        assert "Traceback" not in done.stdout, done.stdout
        return done.returncode, done.stdout


@pytest.fixture
def run(tmp_path: Path) -> Iterator[CommandLine]:
    """A command line, a store with one version, and a change that is not committed."""
    with LocalHub(tmp_path / "hub", {"writer": "write", "reader": "read"}) as hub:
        hub.create_bucket(BUCKET, private=True)
        run = CommandLine(hub.url, tmp_path, "writer")
        run.model.mkdir()
        weights = run.model / "weights.bin"
        weights.write_bytes(np.random.default_rng(1).bytes(100_000))
        assert run("init", "--chunk-size", "64KiB")[0] == Exit.OK
        assert run("commit", run.model)[0] == Exit.OK
        weights.write_bytes(np.random.default_rng(2).bytes(100_000))
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nobody listens", "nobody answers"])
def test_commands_report_an_unreachable_hub(tmp_path: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        if kind == "nobody listens":
            server.close()
            url = "http://127.0.0.1:1"
        else:
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
        run = CommandLine(url, tmp_path)
        run.model.mkdir()
        (run.model / "weights.bin").write_bytes(b"weights")
        verbs = (["log"], ["checkout", "main", run.out], ["commit", run.model], ["init"])
        for status, text in (run(*arguments) for arguments in verbs):
            assert status == UNREACHABLE, text
            assert "cannot be reached" in text
    assert not run.out.exists()


@pytest.mark.slow
def test_commands_report_missing_permissions(run: CommandLine) -> None:
    for arguments in (["log"], ["checkout", "main", run.out], ["commit", run.model]):
        status, text = run(*arguments, HF_TOKEN="unknown")
        assert status == Exit.PERMISSION, text
        assert "hf auth login" in text
    status, text = run("commit", run.model, "--json", HF_TOKEN="reader")
    assert status == Exit.PERMISSION
    assert json.loads(text.splitlines()[-1])["code"] == "no-permission"
    assert run("checkout", "main", run.out, HF_TOKEN="reader")[0] == Exit.OK
    first = np.random.default_rng(1).bytes(100_000)
    assert (run.out / "weights.bin").read_bytes() == first
    assert run("log", "-q")[1].count("\n") == 1


@pytest.mark.slow
def test_commands_report_a_missing_bucket_or_store(run: CommandLine) -> None:
    for store in ("hf://buckets/me/missing", f"hf://buckets/{BUCKET}/elsewhere"):
        for arguments in (["log"], ["checkout", "main", run.out], ["commit", run.model]):
            status, text = run(*arguments, store=store)
            assert status == Exit.NO_STORE, text
            assert "casweights init" in text
    assert not run.out.exists()
