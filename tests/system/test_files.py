"""Tests of complete reads and writes, and of translated errors of the system."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from casweights.errors import ErrorCode, StoreError
from casweights.system.files import read_exactly, storage_errors, write_fully

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, ErrorCode.NO_SPACE),
        (errno.EDQUOT, ErrorCode.NO_SPACE),
        (errno.EACCES, ErrorCode.NO_PERMISSION),
        (errno.EROFS, ErrorCode.NO_PERMISSION),
        (errno.EIO, ErrorCode.IO_FAILED),
    ],
)
def test_errors_of_the_system_become_store_errors_with_a_code(number: int, code: ErrorCode) -> None:
    cause = OSError(number, os.strerror(number))
    with pytest.raises(StoreError) as caught, storage_errors("cannot write it"):
        raise cause
    assert caught.value.code is code
    assert str(caught.value) == f"cannot write it: {os.strerror(number)}"
    assert caught.value.__cause__ is cause


def test_a_read_that_ends_early_returns_false(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        out = bytearray(4)
        assert read_exactly(file.fileno(), 6, memoryview(out))
        assert out == b"6789"
        assert not read_exactly(file.fileno(), 7, memoryview(out))
        assert read_exactly(file.fileno(), 50, memoryview(b""))


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_short(descriptor: int, views: list[memoryview]) -> int:
        return os.write(descriptor, b"".join(views)[:1000])

    monkeypatch.setattr(os, "writev", stop_short)
    parts = [bytes([n]) * (n * 37) for n in range(100)]
    with (tmp_path / "file").open("wb") as file:
        write_fully(file.fileno(), [memoryview(part) for part in parts])
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
