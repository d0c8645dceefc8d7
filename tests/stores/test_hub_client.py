"""Tests of buckets on machines with unusable caches, faulty disks, or in offline mode."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import huggingface_hub.constants
import pytest

from casweights.errors import ErrorCode, StoreError
from casweights.stores.hub.api import hub_errors
from casweights.stores.hub.store import HubStore
from casweights.stores.retry import RetryStore
from casweights.testing.hub import LocalHub

if TYPE_CHECKING:
    from pathlib import Path

USE = """
import os, sys, tempfile
from pathlib import Path
import casweights
from casweights.testing.hub import LocalHub

def main():
    with LocalHub() as hub, tempfile.TemporaryDirectory() as folder:
        hub.create_bucket("me/weights")
        import huggingface_hub.constants
        huggingface_hub.constants.ENDPOINT = hub.url
        Path(folder, "a.bin").write_bytes(bytes(range(256)) * 4096)
        with casweights.open("hf://buckets/me/weights", create=True) as repository:
            version = repository.commit(Path(folder, "a.bin"))
        with casweights.open("hf://buckets/me/weights") as repository:
            repository.checkout(version, Path(folder, "out"))
        assert Path(folder, "out/a.bin").read_bytes() == Path(folder, "a.bin").read_bytes()

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("place", ["{tmp}/file/hf", "/proc/nope"])
def test_a_bucket_works_although_caches_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    home = place.format(tmp=tmp_path)
    script = tmp_path / "use.py"
    script.write_text(USE)
    environment = {**os.environ, "HF_HOME": home, "TMPDIR": str(temporary)}
    for name in ("HF_XET_CACHE", "HF_ASSETS_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**environment, "HF_TOKEN": "hf_test"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EROFS, ErrorCode.NO_PERMISSION),
        (errno.EACCES, ErrorCode.NO_PERMISSION),
        (errno.ENOSPC, ErrorCode.NO_SPACE),
        (errno.EDQUOT, ErrorCode.NO_SPACE),
        (errno.ECONNRESET, ErrorCode.UNREACHABLE),
    ],
)
@pytest.mark.parametrize("how", ["number", "text", "runtime"])
def test_a_fault_of_the_local_disk_is_named_and_any_other_is_unreachable(
    number: int, code: ErrorCode, how: str
) -> None:
    text = f"I/O error: {os.strerror(number)} (os error {number})"
    error = {
        "number": OSError(number, os.strerror(number)),
        "text": OSError(text),
        "runtime": RuntimeError(text),
    }[how]
    with pytest.raises(StoreError) as caught, hub_errors("bucket me/weights"):
        raise error
    assert caught.value.code is code


def test_offline_mode_is_reported_without_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        pauses: list[float] = []
        store = RetryStore(HubStore("me/weights", endpoint=hub.url), sleep=pauses.append)
        with pytest.raises(StoreError, match="unset HF_HUB_OFFLINE") as caught:
            store.get("packs/a")
    assert (caught.value.code, pauses) == (ErrorCode.OFFLINE, [])
