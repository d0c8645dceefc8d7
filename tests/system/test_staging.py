"""Tests of temporary folders for unfinished files."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from casweights.system.staging import PREFIX, Staging, sweep

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys
from pathlib import Path
from casweights.system.staging import Staging
staging = Staging(Path(sys.argv[1]))
staging.new_path().write_bytes(b"draft")
print("ready", flush=True)
sys.stdin.read()
"""


def test_close_deletes_the_folder_and_its_drafts(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        paths = [staging.new_path() for _ in range(3)]
        assert len(set(paths)) == 3
        for path in paths[:2]:
            path.write_bytes(b"draft")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_leaves_folders_in_use(tmp_path: Path) -> None:
    with Staging(tmp_path) as staging:
        staging.new_path().write_bytes(b"draft")
        sweep(tmp_path)
        with Staging(tmp_path) as other:
            assert other.folder != staging.folder
        assert (staging.folder / "0").read_bytes() == b"draft"


def test_a_sweep_deletes_the_folder_of_a_killed_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        sweep(tmp_path)
        assert len(list(tmp_path.glob(f"{PREFIX}*/*"))) == 1
        holder.kill()
    assert len(list(tmp_path.glob(f"{PREFIX}*/*"))) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_close_in_a_forked_child_deletes_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from casweights.system.staging import Staging\n"
        "staging = Staging(Path(sys.argv[1]))\n"
        "child = os.fork()\n"
        "if child == 0: staging.close(); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert staging.folder.is_dir()\n"
        "staging.close()\n"
        "assert not staging.folder.exists()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def refuse_locks(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EPERM, errno.ENOTSUP])
def test_without_locks_a_folder_in_use_survives_every_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patch:
        refuse_locks(patch, code)
        staging = Staging(tmp_path)
        draft = staging.new_path()
        draft.write_bytes(b"draft")
        sweep(tmp_path)
        assert draft.exists()
    sweep(tmp_path)  # by a client that can lock on the same file system
    assert draft.exists()
    staging.close()
    assert list(tmp_path.iterdir()) == []


def test_without_locks_a_folder_is_deleted_after_a_week_without_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch, errno.ENOTSUP)
    staging = Staging(tmp_path)
    draft = staging.new_path()
    draft.write_bytes(b"draft")
    last_month = time.time() - 30 * 24 * 3600
    os.utime(staging.folder, (last_month, last_month))
    sweep(tmp_path)
    assert draft.exists()  # it was written to today
    os.utime(draft, (last_month, last_month))
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_fault_does_not_count_as_missing_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        Staging(tmp_path)
    assert list(tmp_path.iterdir()) == []
