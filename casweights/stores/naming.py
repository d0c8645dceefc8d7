"""Calls that give a finished file a name, and fail if the name is taken.

Not every file system has hard links, and not every one that lacks them can rename without
replacing. What holds is found out by trying, on files that nobody else sees.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from casweights.system.files import is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.system.staging import Staging

    Call = Callable[[str, str, int], None]  # path of the file, its new name, and in which folder

_RENAME_NOREPLACE = 1


def link(path: str, name: str, folder: int) -> None:
    """Give a file a second name, as ``link(2)`` does."""
    os.link(path, name, dst_dir_fd=folder)


def rename_new(path: str, name: str, folder: int) -> None:
    """Rename a file unless the name is taken; see ``renameat2(2)``.

    Raises:
        AttributeError: This system has no such call.
    """
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    # The path is absolute, so the first descriptor does not matter.
    if rename(folder, os.fsencode(path), folder, os.fsencode(name), _RENAME_NOREPLACE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path, None, name)


def replace(path: str, name: str, folder: int) -> None:
    """Rename a file over whatever has the name."""
    os.replace(path, name, dst_dir_fd=folder)


def exclusive_call(drafts: Staging) -> Call | None:
    """The first of `link` and `rename_new` that keeps its promise in this folder; None if none.

    Raises:
        OSError: The folder cannot be written to.
    """
    return next((call for call in (link, rename_new) if _is_exclusive(call, drafts)), None)


def _is_exclusive(call: Call, drafts: Staging) -> bool:
    draft, taken, free = (drafts.new_path() for _ in range(3))
    try:
        draft.touch(exist_ok=False)
        taken.touch(exist_ok=False)
        try:
            call(str(draft), taken.name, drafts.descriptor)
        except FileExistsError:
            call(str(draft), free.name, drafts.descriptor)
        else:
            return False  # it has replaced a file, so it cannot be relied on
    except AttributeError:
        return False
    except OSError as error:
        if not is_refusal(error):
            raise
        return False
    else:
        return True
    finally:
        for path in (draft, taken, free):
            with suppress(OSError):
                path.unlink(missing_ok=True)
