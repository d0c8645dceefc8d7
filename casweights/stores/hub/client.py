"""hf_xet, with a place for its own files that can be written to.

It keeps a log and notes on what it uploads, by default in huggingface_hub's cache. These are aids:
where that cache cannot be written to, they go to a temporary folder of this process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from typing import Any

_ROOM = bytes(64 << 10)  # less than what it writes, so a folder without this much is full


@cache
def xet() -> Any:
    """The module. Import it nowhere else: where it logs to is settled when it is imported."""
    from huggingface_hub import constants

    if not _can_be_written(constants.HF_XET_CACHE):
        with suppress(OSError):
            # The environment is the only way to tell it. Processes that this one starts do not get
            # the variable, because they must not use a folder that goes with this process.
            os.putenv("HF_XET_CACHE", _temporary_folder())
    import hf_xet

    return hf_xet


def _can_be_written(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_ROOM)
    except OSError:
        return False
    return True


def _temporary_folder() -> str:
    folder, owner = tempfile.mkdtemp(prefix="casweights-xet-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child leaves it to its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
