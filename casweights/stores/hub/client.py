"""Imports hf_xet, with a writable folder for its own files.

hf_xet keeps a log and records of its uploads, by default in huggingface_hub's cache. It can work
without old records, so if that cache is not writable, they go to a temporary folder of this
process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from typing import Any

_ROOM = bytes(64 << 10)  # test data, less than hf_xet writes: a disk without this room is full


@cache
def xet() -> Any:
    """Return the module hf_xet.

    Do not import it elsewhere: it chooses its log folder at import, so that folder must be set
    before.
    """
    from huggingface_hub import constants

    if not _can_be_written(constants.HF_XET_CACHE):
        with suppress(OSError):
            # hf_xet reads the folder only from the environment. `putenv` leaves `os.environ` as it
            # is, so child processes do not inherit a folder that is deleted with this process.
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
